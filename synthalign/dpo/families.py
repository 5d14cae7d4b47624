"""What differs between families of models: where their parts are, how they count positions, what sees both ways."""

import inspect
from typing import Any

import torch
from torch import Tensor

from synthalign.dpo.attention import NotCarriedError
from synthalign.dpo.batch import PreferenceBatch

UNDERSTOOD = {"input_ids", "mm_token_type_ids"}
"""Inputs per token that no packed row gets wrong; token types besides, in the families below."""

LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that see by position only; any other kind remembers the row itself."""


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


def trains_encoder(network: Any) -> bool:  # noqa: ANN401
    """Whether anything but the language model and its head is trained: vision tower, projector."""
    kept = {id(parameter) for parameter in decoder_of(network).parameters()}
    return any(p.requires_grad and id(p) not in kept for p in base_of(network).model.parameters())


def softcap_of(network: Any) -> float | None:  # noqa: ANN401
    """Return the model's bound of its logits, if it has one.

    Raises:
        ValueError: The model scales its logits, which would be scored wrongly.
    """
    base = base_of(network)
    config = base.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or getattr(config, "logits_scaling", None) or 1.0
    if scale != 1.0:
        raise ValueError(f"{type(base).__name__} scales its logits by {scale}, which is not supported")
    return getattr(config, "final_logit_softcapping", None)


def check_packable(network: Any, batch: PreferenceBatch) -> None:  # noqa: ANN401
    """Refuse a model that a packed row may get wrong, as far as its make-up tells.

    Raises:
        NotCarriedError: It has something that is not understood here.
    """
    base = base_of(network)
    config = base.config.get_text_config()
    if not takes_features(network):
        raise NotCarriedError("it takes no encoded images")
    if strange := set(getattr(config, "layer_types", None) or ()) - LAYERS:
        raise NotCarriedError(f"it has layers of {min(strange)}")
    if getattr(config, "attn_logit_softcapping", None):
        raise NotCarriedError("it bounds its attention's logits")
    known = UNDERSTOOD | ({"token_type_ids"} if base.config.model_type in ("paligemma", "gemma3") else set())
    if strange := set(batch.prompts[0]) - known:
        raise NotCarriedError(f"its processor gives {min(strange)} for each token")


def positions(network: Any, batch: PreferenceBatch, pair: int, num_response: int) -> Tensor:  # noqa: ANN401
    """Return the positions of a pair's prompt and of ``num_response`` tokens behind it.

    Returns:
        (1, P + num_response), or (3, P + num_response) for time, height and width in rotary embeddings of Qwen-VL's
        kind.
    """
    base = base_of(network)
    core, prompt = base.model, batch.prompts[pair]
    ids = torch.cat([prompt["input_ids"], batch.chosen[pair].new_zeros(num_response)])
    if hasattr(core, "get_rope_index"):
        place = batch.image_of[pair]
        grids = batch.images["image_grid_thw"][place : place + 1].cpu()
        kinds = (ids == image_token_of(network)).int()
        return core.get_rope_index(ids[None], mm_token_type_ids=kinds[None], image_grid_thw=grids)[0][:, 0]
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
