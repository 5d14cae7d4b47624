"""Attention of rows that share the beginning of their prompts: to the shared keys, to their own, and merged.

The two parts are merged by their log-sum-exp, so the shared keys and values are never copied.

N rows, H heads, G heads of keys and values, E width of a head, Q queries, K keys.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "synthalign_shared"
"""Of this attention among those of transformers, which builds no mask for a name that it has no mask for."""

UNDERSTOOD = {
    "is_causal",
    "position_ids",
    "output_attentions",
    "use_cache",
    "cache_position",
    "position_bias",
    "logits_to_keep",  # of the head behind, which LLaVA-OneVision hands down to every layer
}
"""What models hand to any attention, and what one of ours needs not know."""

FLASH_DTYPES = (torch.float16, torch.bfloat16)


class NotCarriedError(ValueError):
    """A model has something that an attention of ours would get wrong."""


class Attends(Protocol):
    """What knows whom the rows of a forward see."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attend in one layer: (N, H, Q, E) and twice (N, G, Q, E) in, (N, H, Q, E) out."""
        ...


def refuse_unknown(others: Mapping[str, Any], dropout: float) -> None:
    """Refuse what a family hands to its attention besides what every family does.

    Raises:
        NotCarriedError: There is something.
    """
    if unknown := [name for name, given in others.items() if name not in UNDERSTOOD and given is not None]:
        raise NotCarriedError(f"its attention takes {unknown[0]}")
    if dropout:
        raise NotCarriedError("its attention drops out")


def shared_attention(
    module: Any,  # noqa: ANN401 - the model's attention
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,  # the caller saw to it that no row is longer
    *,
    shared: Attends,
    **others: Any,  # noqa: ANN401 - whatever a family adds
) -> tuple[Tensor, None]:
    """Attend as transformers asks: (N, H, Q, E) in, (N, Q, H, E) out.

    Raises:
        NotCarriedError: The model's attention does what this one does not.
    """
    refuse_unknown(others, dropout)
    query, key, value = (as_autocast(one) for one in (query, key, value))
    return shared.attend(module.layer_idx, query, key, value, scaling).transpose(1, 2), None


AttentionInterface.register(NAME, shared_attention)


def as_autocast(one: Tensor) -> Tensor:
    """Cast as scaled_dot_product_attention does under autocast, where rotary embeddings give float32."""
    device = one.device.type
    return one.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else one


@contextmanager
def attending(decoder: Any) -> Iterator[None]:  # noqa: ANN401
    """Give a language model this attention for a while; its forward is to be given ``shared`` then."""
    own = decoder.config._attn_implementation
    decoder.config._attn_implementation = NAME
    try:
        yield
    finally:
        decoder.config._attn_implementation = own


def part(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attend to some of the keys.

    Args:
        query: (N, H, Q, E).
        key: (N, G, K, E).
        value: (N, G, K, E).
        scaling: Of the products; 1 / sqrt(E) by default.
        bias: (N, 1, Q, K), added to the products: 0 or -inf; no row of it is all -inf.

    Returns:
        The output (N, H, Q, E), and the log of the sum of the exponentials (N, H, Q), nats.
    """
    rows, heads, num, width = query.shape
    groups = key.shape[1]
    # Heads that share keys become queries of one head: nothing is repeated.
    folded = query.reshape(rows, groups, heads // groups * num, width)
    if bias is not None:
        bias = bias.repeat(1, 1, heads // groups, 1)
    output, lse = _part(folded, key, value, scaling, bias)
    return output.reshape(rows, heads, num, width), lse.reshape(rows, heads, num)


def merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Merge two parts of one attention, which are outputs (..., E) and log-sum-exps (...)."""
    share = torch.sigmoid(one[1] - other[1]).unsqueeze(-1)
    return torch.lerp(other[0].to(share.dtype), one[0].to(share.dtype), share).to(one[0].dtype)


def _part(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=scaling
        )
    if query.device.type == "cuda" and bias is None and query.dtype in FLASH_DTYPES and query.shape[-1] % 8 == 0:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scaling)[:2]
    return part_by_hand(query, key, value, scaling, bias)


def part_by_hand(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attend to some of the keys, H = G, by the formula, at least in float32."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    products = (query @ key.transpose(2, 3)).to(dtype) * scaling
    if bias is not None:
        products = products + bias
    lse = products.logsumexp(-1)
    return (products - lse.unsqueeze(-1)).exp().to(value.dtype) @ value, lse
