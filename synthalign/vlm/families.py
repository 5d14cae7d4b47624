"""What differs between families of models: where their parts are, how they count positions, what sees both ways.

P tokens of a prompt, S tokens in all.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that see by position only; any other kind remembers the row itself."""

ADAPTED = {"base_layer", "original_module"}
"""How PEFT names what it has put an adapter on, or a copy beside."""


def base_of(network: Any) -> Any:  # noqa: ANN401
    """Return the Hugging Face model, out of PEFT's wrapper if it is in one."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def decoder_of(network: Any) -> Any:  # noqa: ANN401
    """Return the language model without its head."""
    core = base_of(network).model
    return next(getattr(core, name) for name in ("language_model", "text_model") if hasattr(core, name))


def image_token_of(network: Any) -> int:  # noqa: ANN401
    """Return the token that stands for a piece of an image."""
    config = base_of(network).config
    return int(next(getattr(config, name) for name in ("image_token_id", "image_token_index") if hasattr(config, name)))


def takes_features(network: Any) -> bool:  # noqa: ANN401
    """Whether the model takes encoded images in the place of pixels."""
    core = base_of(network).model
    takes = "mm_encoder_outputs" in inspect.signature(core.forward).parameters
    return takes and hasattr(core, "get_image_features")


def encoder_stays(network: Any) -> bool:  # noqa: ANN401
    """Whether vision tower and projector give the same features all along: none of it is trained, no adapter on it."""
    kept = {id(parameter) for parameter in decoder_of(network).parameters()}
    outside = [one for one in base_of(network).model.named_parameters() if id(one[1]) not in kept]
    return not any(parameter.requires_grad or ADAPTED & set(name.split(".")) for name, parameter in outside)


def positions(network: Any, ids: Tensor, grids: Tensor | None = None) -> Tensor:  # noqa: ANN401
    """Return the positions of a sequence of tokens that begins with a prompt.

    Args:
        network: The model.
        ids: (S,) on the CPU, with every placeholder of the image.
        grids: ``image_grid_thw`` (1, 3) of the image, where the processor gives it.

    Returns:
        (1, S), or (3, S) for time, height and width in rotary embeddings of Qwen-VL's kind.
    """
    base = base_of(network)
    if hasattr(base.model, "get_rope_index"):
        kinds = (ids == image_token_of(network)).int()
        grids = None if grids is None else grids.cpu()
        return base.model.get_rope_index(ids[None], mm_token_type_ids=kinds[None], image_grid_thw=grids)[0][:, 0]
    first = 1 if base.config.model_type == "paligemma" else 0
    return torch.arange(first, first + len(ids))[None]


def blocks(network: Any, prompt: dict[str, Tensor]) -> Tensor:  # noqa: ANN401
    """Number a prompt's blocks that see both ways, (P,); -1 where a token sees causally."""
    kinds = prompt.get("token_type_ids")
    if kinds is None:
        return torch.full_like(prompt["input_ids"], -1)
    if base_of(network).config.model_type == "paligemma":  # 0 is the prompt, all of which sees itself
        return torch.where(kinds == 0, 0, -1)
    image = kinds == 1  # Gemma 3: every image sees itself
    begins = image & ~torch.cat([image.new_zeros(1), image[:-1]])
    return torch.where(image, begins.cumsum(0) - 1, -1)
