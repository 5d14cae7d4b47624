"""A Triton kernel that reduces rows of logits. Imported on CUDA only: importing it imports triton.

n rows (tokens), V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Logits of a row that one step of a program handles."""

WARPS = 8
"""Warps of 32 threads that share a row: 16 logits a thread and step."""


def reduce_rows_(logits: Tensor, targets: Tensor, softcap: float | None, directed: bool) -> tuple[Tensor, Tensor]:
    """Reduce logits (n, V) in fp32 to log-probs of the targets (n,) and log-sum-exps (n,).

    Args:
        logits: fp32, bf16 or fp16, each row contiguous. If ``directed``, they are overwritten by the derivatives of
            each row's log-prob with respect to it: without softcap, one at the target less the softmax.
        targets: Token ids (n,).
        softcap: Bound of the logits, where a model squashes them by softcap * tanh(logits / softcap).
        directed: Whether the derivatives are wanted; otherwise the logits stay as they are.
    """
    assert logits.stride(1) == 1 and logits.dtype != torch.float64
    logps, lses = (torch.empty(len(logits), dtype=torch.float32, device=logits.device) for _ in range(2))
    if len(logits):
        launch = _reduce_row[(len(logits),)]
        arguments = (logits, targets.contiguous(), logps, lses, logits.stride(0), logits.shape[1], softcap or 1.0)
        block = min(BLOCK, triton.next_power_of_2(logits.shape[1]))
        with torch.cuda.device_of(logits):  # a launch goes to the current device
            launch(*arguments, CAPPED=softcap is not None, DIRECTED=directed, BLOCK=block, num_warps=WARPS)
    return logps, lses


@triton.jit
def _squash(logits: tl.tensor, softcap: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return the bounded logits and their derivatives, from exp(-2 |x|), which neither overflows nor cancels."""
    fall = tl.exp(-2.0 * tl.abs(logits / softcap))
    bounded = softcap * (1.0 - fall) / (1.0 + fall)
    return tl.where(logits < 0, -bounded, bounded), 4.0 * fall / ((1.0 + fall) * (1.0 + fall))


@triton.jit
def _reduce_row(
    logits: tl.tensor,
    targets: tl.tensor,
    logps: tl.tensor,
    lses: tl.tensor,
    stride: tl.tensor,
    vocabulary: tl.tensor,
    softcap: tl.tensor,
    CAPPED: tl.constexpr,
    DIRECTED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Reduce one row: running maximum and sum in a first pass, derivatives in a second."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    most, total, picked = float("-inf"), 0.0, 0.0
    for start in range(0, vocabulary, BLOCK):
        words = start + tl.arange(0, BLOCK)
        given = tl.load(logits + words, mask=words < vocabulary, other=0.0).to(tl.float32)
        if CAPPED:
            given, _ = _squash(given, softcap)
        # Not loaded by itself: another warp could already have overwritten it.
        picked += tl.sum(tl.where(words == target, given, 0.0))
        given = tl.where(words < vocabulary, given, float("-inf"))
        higher = tl.maximum(most, tl.max(given))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # -inf less -inf is no number
        total = total * tl.exp(most - shift) + tl.sum(tl.exp(given - shift))
        most = higher
    lse = most + tl.log(total)
    tl.store(logps + row, (picked - most) - tl.log(total))
    tl.store(lses + row, lse)
    if DIRECTED:
        for start in range(0, vocabulary, BLOCK):
            words = start + tl.arange(0, BLOCK)
            given = tl.load(logits + words, mask=words < vocabulary, other=0.0).to(tl.float32)
            slopes = 1.0
            if CAPPED:
                given, slopes = _squash(given, softcap)
            # Shift and divide: to subtract the log-sum-exp would lose what is below its last digit.
            derivatives = tl.where(words == target, 1.0, 0.0) - tl.exp(given - most) / total
            tl.store(logits + words, (derivatives * slopes).to(logits.dtype.element_ty), mask=words < vocabulary)
