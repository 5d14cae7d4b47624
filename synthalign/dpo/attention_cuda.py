"""Attention over a packed row on CUDA: one variable-length flash call, or FlexAttention where blocks see both ways.

S tokens of the row, H heads, E width of a head, K keys of all sequences one behind the other.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthalign.dpo.attention import Packed, masked_attention, sequences


class VarlenIndex(NamedTuple):
    """A row as variable-length attention takes it: queries stay in their order, keys are gathered."""

    keys: Tensor  # (K,) places of the keys, sequence by sequence
    query_ends: Tensor  # (sequences + 1,) int32, from 0
    key_ends: Tensor  # (sequences + 1,) int32, from 0
    max_queries: int
    max_keys: int


def varlen_index(packed: Packed) -> VarlenIndex:
    """Say which keys each sequence of queries sees, causally from the last token backwards."""
    found = sequences(packed.runs)
    keys = [torch.cat([torch.arange(*span) for span in (*ancestors, own)]) for own, ancestors in found]
    num_queries = [end - start for (start, end), _ in found]
    num_keys = [len(one) for one in keys]
    query_ends, key_ends = (torch.tensor([0, *counts]).cumsum(0).int() for counts in (num_queries, num_keys))
    return VarlenIndex(torch.cat(keys), query_ends, key_ends, max(num_queries), max(num_keys))


def attend_cuda(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None, window: int | None
) -> Tensor:
    """Attend over a packed row: (1, H, S, E) in, (1, S, H, E) out; keys and values may have fewer heads."""
    grouped = query.shape[1] != key.shape[1]
    if packed.blocks is not None:
        mask = packed.cached(("blocks", window), lambda: _block_mask(packed, window, query.device))
        return _flex()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=grouped).transpose(1, 2)
    if query.dtype == torch.float32 or query.dtype == torch.float64:  # flash attention knows half precision only
        return masked_attention(query, key, value, packed, scaling, window)
    from torch.nn.attention.varlen import varlen_attn

    index = packed.cached("varlen", lambda: _moved(varlen_index(packed), query.device))
    keys, values = (one[0].transpose(0, 1)[index.keys] for one in (key, value))
    output: Any = varlen_attn(  # a tuple only where more is asked for
        query[0].transpose(0, 1).contiguous(),
        keys,
        values,
        index.query_ends,
        index.key_ends,
        index.max_queries,
        index.max_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=grouped,
    )
    return output[None]


def mask_mod(packed: Packed, window: int | None, device: torch.device | str) -> Callable[..., Tensor]:
    """Return who sees whom as FlexAttention asks: a function of batch, head, query's place and key's place."""
    stop, depth, run = (one.to(device) for one in (packed.stop, packed.depth, packed.run))
    block = None if packed.blocks is None else packed.blocks.to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < stop[key])
        if block is not None:
            seen = seen | ((run[query] == run[key]) & (block[query] == block[key]) & (block[query] >= 0))
        if window is not None:
            seen = seen & (depth[query] - depth[key] < window)
        return seen

    return sees


def _block_mask(packed: Packed, window: int | None, device: torch.device) -> Any:  # noqa: ANN401
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(mask_mod(packed, window, device), None, None, packed.size, packed.size, device=str(device))


@cache
def _flex() -> Any:  # noqa: ANN401
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _moved(index: VarlenIndex, device: torch.device) -> VarlenIndex:
    keys, query_ends, key_ends = (one.to(device) for one in index[:3])
    return index._replace(keys=keys, query_ends=query_ends, key_ends=key_ends)
