"""Attention over a packed row: a forest of token runs, each seeing itself causally and its ancestors whole.

Tokens of a tree lie in depth-first order, so whatever descends from a run lies right behind it, and everything that is
attended to is a slice. Where attention is plainly causal, each slice is attended to on its own and the parts are merged
by their log-sum-exp: keys are never copied. Where a model has sliding windows or blocks that see both ways, a mask says
who sees whom.

S tokens of the row, H heads, E width of a head, T tokens of a slice.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from synthalign.vlm.attention import refuse_unknown

NAME = "synthalign_packed"
"""Of this attention among those of transformers, which builds no mask for a name that it has no mask for."""


class Run(NamedTuple):
    """Tokens [start, end) of the row; all that descend from them lie in [end, stop)."""

    start: int
    end: int
    stop: int
    ancestors: tuple[tuple[int, int], ...]  # their (start, end), the root first
    read: int  # of the last layer's states, those from this token on are read


class Packed:
    """Who sees whom in a row.

    Args:
        runs: In the order of the row, which they cover.
        blocks: (S,) of integers: tokens of one run with the same number >= 0 see one another both ways. None where
            everything is causal.
        last_layer: Index of the layer whose states nobody but the head reads; None to compute them all.
    """

    def __init__(self, runs: list[Run], blocks: Tensor | None = None, last_layer: int | None = None) -> None:
        self.runs, self.last_layer = runs, last_layer
        self.blocks = blocks if blocks is not None and bool((blocks >= 0).any()) else None
        self.size = runs[-1].end
        self._made: dict[Any, Any] = {}

    @cached_property
    def depth(self) -> Tensor:
        """Place of each token in its own branch, (S,)."""
        return self._by_token(
            [sum(end - start for start, end in run.ancestors) - run.start for run in self.runs]
        ) + torch.arange(self.size)

    @cached_property
    def run(self) -> Tensor:
        """Number of each token's run, (S,)."""
        return self._by_token(list(range(len(self.runs))))

    @cached_property
    def stop(self) -> Tensor:
        """Where what descends from each token ends, (S,): a token is seen by itself and by all up to there."""
        return self._by_token([run.stop for run in self.runs])

    @cached_property
    def read(self) -> Tensor:
        """Places whose states in the last layer are read."""
        return torch.cat([torch.arange(run.read, run.end) for run in self.runs])

    def dense(self, window: int | None = None) -> Tensor:
        """Return the mask (S, S): whether the token of the row sees that of the column."""
        places = torch.arange(self.size)
        seen = (places <= places[:, None]) & (places[:, None] < self.stop)
        if self.blocks is not None:
            alike = (self.blocks == self.blocks[:, None]) & (self.run == self.run[:, None])
            seen |= alike & (self.blocks >= 0)
        return seen if window is None else seen & (self.depth[:, None] - self.depth < window)

    def cached(self, key: Any, make: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Return what was made under a key, making it the first time: all layers of a forward need the same."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _by_token(self, of_runs: list[int]) -> Tensor:
        lengths = torch.tensor([run.end - run.start for run in self.runs])
        return torch.tensor(of_runs).repeat_interleave(lengths)


@contextmanager
def attending(decoder: Any, packed: Packed | None) -> Iterator[dict[str, Packed]]:  # noqa: ANN401
    """Give a language model this attention for a while; yields what its forward is to be given besides.

    Its last layer meanwhile computes only the states that are read. Without ``packed`` the model stays as it is.
    """
    if packed is None:
        yield {}
        return
    own = decoder.config._attn_implementation
    decoder.config._attn_implementation = NAME
    last = decoder.layers[-1]
    attention = getattr(last, "self_attn", None)
    parts = [getattr(attention, "q_proj", None), getattr(attention, "o_proj", None), getattr(last, "mlp", None)]
    with ExitStack() as stack:
        stack.callback(setattr, decoder.config, "_attn_implementation", own)
        for part in parts:
            if part is not None and packed.last_layer is not None:
                stack.enter_context(_only(part, packed))
        yield {"packed": packed}


@contextmanager
def _only(part: torch.nn.Module, packed: Packed) -> Iterator[None]:
    """Let a module that maps (1, S, D) token by token do so where states are read, and give zeros elsewhere."""
    patched, forward = "forward" in part.__dict__, part.forward

    def sparse(states: Tensor) -> Tensor:
        at = packed.cached(("read", states.device), lambda: packed.read.to(states.device))
        some = forward(states[:, at])
        if not isinstance(some, Tensor):  # it tells more than states, as some mixtures of experts do
            return forward(states)
        return some.new_zeros(*states.shape[:2], some.shape[-1]).index_copy(1, at, some)

    part.forward = sparse
    try:
        yield
    finally:
        if patched:
            part.forward = forward
        else:
            del part.forward


def packed_attention(
    module: Any,  # noqa: ANN401 - the model's attention
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    *,
    packed: Packed,
    **others: Any,  # noqa: ANN401 - whatever a family adds
) -> tuple[Tensor, None]:
    """Attend over a packed row, as transformers asks: (1, H, S, E) in, (1, S, H, E) out.

    Raises:
        NotCarriedError: The model's attention does what this one does not.
    """
    refuse_unknown(others, dropout)
    device = query.device.type
    if torch.is_autocast_enabled(device):  # rotary embeddings give float32 then, and scaled_dot_product_attention casts
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if sliding_window is not None and packed.size <= sliding_window:
        sliding_window = None
    if device == "cuda":
        from synthalign.dpo.attention_cuda import attend_cuda

        return attend_cuda(query, key, value, packed, scaling, sliding_window), None
    if packed.blocks is None and sliding_window is None:
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        last = packed.last_layer is not None and getattr(module, "layer_idx", None) == packed.last_layer
        return _Merged.apply(query, key, value, packed.runs, scaling, last), None
    return masked_attention(query, key, value, packed, scaling, sliding_window), None


AttentionInterface.register(NAME, packed_attention)


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None, window: int | None
) -> Tensor:
    """Attend run by run, each to all that it may see, by mask; (1, H, S, E) in, (1, S, H, E) out."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    mask = packed.cached(("dense", window), lambda: packed.dense(window).to(query.device))
    outputs = []
    for run in packed.runs:
        spans = [slice(*span) for span in (*run.ancestors, (run.start, run.end))]
        own = slice(run.start, run.end)
        keys, values = (torch.cat([one[:, :, span] for span in spans], 2) for one in (key, value))
        seen = torch.cat([mask[own, span] for span in spans], 1)
        outputs.append(scaled_dot_product_attention(query[:, :, own], keys, values, attn_mask=seen, scale=scaling))
    return torch.cat(outputs, 2).transpose(1, 2)


class _Merged(torch.autograd.Function):
    """Causal attention of every run, the parts merged by their log-sum-exp.

    A part's backward pass needs the whole's output and log-sum-exp only, as in ring attention (Liu et al. 2023, arXiv
    2310.01889): nothing but those and the inputs is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        query: Tensor,
        key: Tensor,
        value: Tensor,
        runs: list[Run],
        scaling: float | None,
        last: bool,
    ) -> Tensor:
        """Attend; (1, S, H, E)."""
        # heads apart: a sixteenth faster, copies included, than with the heads of a token side by side
        query, key, value = (one.contiguous() for one in (query, key, value))
        heads, size, width = query.shape[1:]
        output = query.new_zeros(1, size, heads, width) if last else query.new_empty(1, size, heads, width)
        sums = query.new_empty(1, heads, size, dtype=torch.promote_types(query.dtype, torch.float32))
        done = 0  # the row's tokens up to here have a first part
        for own, seen, causal in _parts(runs, last):
            part, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, own], key[:, :, seen], value[:, :, seen], 0.0, causal, scale=scaling
            )
            part = part.transpose(1, 2)
            if own.start >= done:
                output[:, own], sums[:, :, own] = part, lse
                done = own.stop
                continue
            whole = torch.logaddexp(sums[:, :, own], lse)
            share = (lse - whole).exp_().transpose(1, 2).unsqueeze(-1)
            output[:, own] = torch.lerp(output[:, own].to(whole.dtype), part.to(whole.dtype), share)
            sums[:, :, own] = whole
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.settings = (runs, scaling, last)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Give the gradients of query, key and value."""
        query, key, value, output, sums = ctx.saved_tensors
        runs, scaling, last = ctx.settings
        grads = tuple(torch.zeros_like(one) for one in (query, key, value))
        grad, output = grad.transpose(1, 2), output.transpose(1, 2)
        for own, seen, causal in _parts(runs, last):
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[:, :, own],
                query[:, :, own],
                key[:, :, seen],
                value[:, :, seen],
                output[:, :, own],
                sums[:, :, own],
                0.0,
                causal,
                scale=scaling,
            )
            for whole, part, where in zip(grads, parts, (own, seen, seen), strict=True):
                whole[:, :, where] += part
        return *grads, None, None, None


def sequences(runs: list[Run]) -> list[tuple[tuple[int, int], tuple[tuple[int, int], ...]]]:
    """Join every run to its first child where that has none itself: the two are one causal sequence.

    Returns:
        (start, end) of each sequence, in the order of the row, and those of its ancestors.
    """
    found: list[tuple[tuple[int, int], tuple[tuple[int, int], ...]]] = []
    for run in runs:
        if found and found[-1][0][1] == run.start and run.stop == run.end and run.ancestors:
            (start, end), ancestors = found[-1]
            if run.ancestors == (*ancestors, (start, end)):
                found[-1] = ((start, run.end), ancestors)
                continue
        found.append(((run.start, run.end), run.ancestors))
    return found


def _parts(runs: list[Run], last: bool) -> Iterator[tuple[slice, slice, bool]]:
    """Give the slices that attend, what each attends to, and whether causally; a token's first part comes first."""
    spans = {start: (start, end) for (start, end), _ in sequences(runs)}
    for run in runs:
        rest = run.end
        if last:  # no more than the last token of a prompt is read
            if run.read == run.start:
                yield slice(run.start, run.end), slice(run.start, run.end), True
            elif run.read < run.end:
                assert run.read == run.end - 1
                yield slice(run.read, run.end), slice(run.start, run.end), False
        elif run.start in spans:
            rest = spans[run.start][1]
            yield slice(run.start, rest), slice(run.start, rest), True
        if rest < run.stop:
            yield slice(rest, run.stop), slice(run.start, run.end), False
