"""Log-probabilities of given tokens under an output embedding, of whose logits only a chunk exists at a time.

N scored tokens, D width, V vocabulary, n tokens of a chunk.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

CHUNK_TOKENS = 256
"""Rows of logits that exist at a time: 256 of LLaVA's 32064 words take 31 MiB in fp32.

Measured on one AVX-512 core without bf16 instructions: scoring 473 tokens of width 512, gradient included, takes 619,
452, 372, 333 and 354 ms with chunks of 32, 64, 128, 256 and 512 in fp32 (the two products alone, in one piece: 265),
1466, 1382, 1323, 1296 and 1305 ms in bf16. Small chunks make slow products; the C library hands a buffer of more than
32 MiB back after each call, and its pages have to be mapped again.
"""

CACHED_LOGITS = 2**17
"""Logits that a CPU reduces at a time, so that each pass but the first reads its cache: half a MiB in fp32."""


def token_logps(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    softcap: float | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Tensor:
    """Return log softmax(head(hidden))[targets] for N tokens, shape (N,), in at least fp32.

    Products with the (V, D) weight: one without gradients; two for the gradient to ``hidden``, both in the forward
    pass; two more for the gradient to the weight, both in the backward pass. Any head but an ordinary bias-free linear
    layer is called as it is, chunk by chunk, and once more in the backward pass.

    Args:
        hidden: Final hidden states (N, D).
        head: The output embedding, D to V.
        targets: Token ids (N,).
        softcap: Bound of the logits, where a model squashes them by softcap * tanh(logits / softcap).
        chunk_tokens: Rows of logits that exist at a time.
    """
    if not (isinstance(head, nn.Linear) and _is_ordinary(head)):
        return _logps_of_any(hidden, head, targets, softcap, chunk_tokens)
    with _calls_go_to(head, _Scorer(head=head, targets=targets, softcap=softcap, chunk_tokens=chunk_tokens)):
        return head(hidden)


@dataclass(frozen=True, kw_only=True)
class _Scorer:
    """What stands in for the forward of an ordinary head."""

    head: nn.Linear
    targets: Tensor
    softcap: float | None
    chunk_tokens: int

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the log-probs (N,) of the targets."""
        # The weight is read here, not earlier: FSDP holds it whole during a call of the head only.
        hidden, weight = _as_autocast(hidden), _as_autocast(self.head.weight)
        settings = (self.targets, self.softcap, self.chunk_tokens)
        if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
            return _TokenLogps.apply(hidden, weight, *settings)
        return _score(hidden, weight, *settings, directed=False)[0]


@contextmanager
def _calls_go_to(head: nn.Module, scorer: _Scorer) -> Iterator[None]:
    """Let calls of the head score instead of project, so that whoever hooked them (FSDP gathers weights) is called."""
    outer = vars(head).get("forward")
    head.forward = scorer
    try:
        yield
    finally:
        if outer is None:
            del head.forward
        else:
            head.forward = outer


def _is_ordinary(head: nn.Linear) -> bool:
    """Tell whether a head does nothing but multiply by its weight, which PyTorch may have sharded."""
    names = [name for name, _ in head.named_parameters()]
    if type(head).forward is not nn.Linear.forward or names != ["weight"]:
        return False
    if "forward" in vars(head) and not isinstance(vars(head)["forward"], _Scorer):  # accelerate offloads by such a one
        return False
    kinds = (head._forward_pre_hooks, head._forward_hooks, head._backward_pre_hooks, head._backward_hooks)
    hooks = [hook for kind in kinds for hook in kind.values()]
    if not all(getattr(hook, "__module__", "").startswith("torch.distributed.") for hook in hooks):
        return False
    # Quantised weights are of types of their own, and so are sharded ones until a hook gathers them.
    return type(head.weight) in (Tensor, nn.Parameter) or bool(hooks)


def _as_autocast(tensor: Tensor) -> Tensor:
    """Cast as autocast does the inputs of a linear layer, where it is on."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


class _TokenLogps(Function):
    """Log-probs whose gradient to the hidden states is, but for a factor per token, made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        softcap: float | None,
        chunk_tokens: int,
    ) -> Tensor:
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        logps, lses, directions = _score(hidden, weight, targets, softcap, chunk_tokens, directed=to_hidden)
        ctx.save_for_backward(directions, *((lses, hidden, weight, targets) if to_weight else ()))
        ctx.softcap, ctx.chunk_tokens = softcap, chunk_tokens
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        directions, *needed = ctx.saved_tensors
        to_hidden = (directions * grad[:, None]).to(directions.dtype) if directions is not None else None
        if not needed:
            return to_hidden, None, None, None, None
        lses, hidden, weight, targets = needed
        to_weight = _weight_gradient(grad, lses, hidden, weight, targets, ctx.softcap, ctx.chunk_tokens)
        return to_hidden, to_weight, None, None, None


def _score(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, chunk_tokens: int, *, directed: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Score all tokens, chunk by chunk.

    Returns:
        Log-probs (N,) and log-sum-exps of the logits (N,); and, if ``directed``, the derivatives (N, D) of the
        log-probs with respect to the hidden states, which without softcap are W[target] - softmax @ W.
    """
    logps, lses = (hidden.new_empty(len(hidden), dtype=_wide(hidden.dtype)) for _ in range(2))
    directions = hidden.new_empty(hidden.shape) if directed else None
    size = _even(len(hidden), chunk_tokens)
    buffer = hidden.new_empty(min(size, len(hidden)), len(weight))
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        ids = targets[part]
        logits = torch.mm(hidden[part], weight.t(), out=buffer[: len(ids)])
        logps[part], lses[part] = _reduce_(logits, ids, softcap, directed)
        if directions is not None:
            torch.mm(logits, weight, out=directions[part])
    return logps, lses, directions


def _reduce_(logits: Tensor, targets: Tensor, softcap: float | None, directed: bool) -> tuple[Tensor, Tensor]:
    """Reduce a chunk of logits (n, V) to log-probs (n,) and log-sum-exps (n,), in at least fp32, and overwrite them.

    If ``directed``, what is left in ``logits`` are the derivatives of each row's log-prob with respect to it.
    """
    if logits.is_cuda:
        if logits.dtype != torch.float64 and _has_triton():
            from synthalign.dpo.kernels import reduce_rows_  # imports triton, which needs a GPU or its interpreter

            return reduce_rows_(logits, targets, softcap, directed)
        return _reduce_rows_(logits, targets, softcap, directed)
    rows = max(1, CACHED_LOGITS // logits.shape[1])
    parts = zip(logits.split(rows), targets.split(rows), strict=True)
    logps, lses = zip(*[_reduce_rows_(some, ids, softcap, directed) for some, ids in parts], strict=True)
    return torch.cat(logps), torch.cat(lses)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _reduce_rows_(logits: Tensor, targets: Tensor, softcap: float | None, directed: bool) -> tuple[Tensor, Tensor]:
    """Do what `_reduce_` says with plain tensor operations, in as few passes over the logits as they allow."""
    wide, ids = logits.to(_wide(logits.dtype)), targets[:, None]  # the logits themselves, if they are wide enough
    slopes = _squash_(wide, softcap)
    most = wide.amax(1, keepdim=True)
    picked = wide.sub_(most).gather(1, ids)
    sums = wide.exp_().sum(1, keepdim=True)
    spread = sums.log()
    if directed:
        wide.mul_(-1 / sums)
        wide.scatter_(1, ids, 1 + wide.gather(1, ids))
        if slopes is not None:
            wide.mul_(slopes)
        logits.copy_(wide)  # nothing happens where the two are one
    return (picked - spread).squeeze(1), (most + spread).squeeze(1)


def _weight_gradient(
    grad: Tensor,
    lses: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    chunk_tokens: int,
) -> Tensor:
    """Return the gradient to the weight (V, D), computing the logits again.

    It goes through blocks of the vocabulary: then each row of the gradient comes out of one product, whose sum over
    tokens is exact in fp32, while chunks of tokens would have to be added up in the weight's type.
    """
    gradient = weight.new_zeros(weight.shape)
    num_tokens, vocabulary = len(hidden), len(weight)
    width = _even(vocabulary, max(1, chunk_tokens * vocabulary // max(1, num_tokens)))
    factor = grad.to(lses.dtype)[:, None]
    for start in range(0, vocabulary if num_tokens else 0, width):
        some = weight[start : start + width]
        wide = torch.mm(hidden, some.t()).to(lses.dtype)
        slopes = _squash_(wide, softcap)
        wide.sub_(lses[:, None]).exp_().mul_(-factor)
        places = (targets[:, None] - start).clamp(0, len(some) - 1)
        here = places + start == targets[:, None]
        wide.scatter_(1, places, wide.gather(1, places) + factor * here)
        if slopes is not None:
            wide.mul_(slopes)
        torch.mm(wide.to(weight.dtype).t(), hidden, out=gradient[start : start + width])
    return gradient


def _squash_(logits: Tensor, softcap: float | None) -> Tensor | None:
    """Bound the logits in place; return the derivatives of the bounded to the given ones, if there is a bound."""
    if softcap is None:
        return None
    logits.div_(softcap).tanh_()
    slopes = 1 - logits.square()
    logits.mul_(softcap)
    return slopes


def _logps_of_any(hidden: Tensor, head: nn.Module, targets: Tensor, softcap: float | None, chunk_tokens: int) -> Tensor:
    """Score under any module (adapters, a bias, quantised weights, hooks), leaving its gradients to autograd."""

    def score(states: Tensor, ids: Tensor) -> Tensor:
        logits = head(states)
        logits = logits.to(_wide(logits.dtype))
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return -cross_entropy(logits, ids, reduction="none")

    size = _even(len(hidden), chunk_tokens)
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(score, states, ids, use_reentrant=False) for states, ids in parts])
    return torch.cat([score(states, ids) for states, ids in parts])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _even(total: int, most: int) -> int:
    """Return the size of the fewest parts of at most ``most``, as even as can be, so that none is a slow remnant."""
    return -(-total // -(-total // most)) if total else most
