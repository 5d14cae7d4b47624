"""What a family of models must be for its pairs to be packed and scored."""

from typing import Any

import torch
from torch import Tensor

from synthalign.dpo.batch import PreferenceBatch
from synthalign.vlm import families
from synthalign.vlm.attention import NotCarriedError
from synthalign.vlm.families import LAYERS, base_of, decoder_of, takes_features

UNDERSTOOD = {"input_ids", "mm_token_type_ids"}
"""Inputs per token that no packed row gets wrong; token types besides, in the families below."""


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
    place, grids = batch.image_of[pair], batch.images.get("image_grid_thw")
    ids = torch.cat([batch.prompts[pair]["input_ids"], batch.chosen[pair].new_zeros(num_response)])
    return families.positions(network, ids, None if grids is None else grids[place : place + 1])
