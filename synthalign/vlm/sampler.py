"""What looks at a reply's logits: a sampler keyed by row, and the margin of "yes"."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

BLOCK = 256
"""Tokens of the vocabulary that are summed up together."""


class KeyedSampler(LogitsProcessor):
    """Sample each row with noise keyed by (its seed, step): a row's draw does not depend on the rest of the batch.

    Used with greedy search: all tokens but the drawn one are ruled out. The draw inverts the cumulative distribution
    at one uniform number per row and step, so no noise over the vocabulary is needed.

    Args:
        seeds: One per row.
        temperature: Divides the logits, > 0.
        top_k: Draw among the k likeliest tokens; 0 for all.
        top_p: Draw among the likeliest tokens that together reach this probability, in (0, 1].
    """

    def __init__(
        self, seeds: Sequence[int] | np.ndarray, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
    ) -> None:
        if not (temperature > 0 and top_k >= 0 and 0 < top_p <= 1):
            raise ValueError(
                f"temperature must be > 0, top_k >= 0 and top_p in (0, 1], got {temperature}, {top_k} and {top_p}"
            )
        self.seeds = np.asarray(seeds, dtype=np.uint64)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.step = 0

    def rows(self, rows: Sequence[int]) -> "KeyedSampler":
        """Return the sampler of these rows, at its first step."""
        return KeyedSampler(self.seeds[rows], temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Rule out all but one token in each row of ``scores`` (n, vocab)."""
        return torch.full_like(scores, -torch.inf).scatter_(-1, self.draw(scores)[:, None], 0.0)

    def draw(self, scores: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Draw the next token (n,) of each row of ``scores`` (n, vocab), or of these rows where others have ended.

        Raises:
            FloatingPointError: The scores of a row are no numbers.
        """
        logits = scores.float() if self.temperature == 1.0 else scores.float() / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            smallest = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < smallest, -torch.inf)
        probs = logits.softmax(-1)
        if self.top_p < 1.0:
            ordered, order = probs.sort(descending=True, stable=True)
            beyond = ordered.cumsum(-1) - ordered >= self.top_p
            probs = probs.masked_fill(torch.zeros_like(beyond).scatter_(-1, order, beyond), 0.0)
        seeds = self.seeds if rows is None else self.seeds[rows]
        uniform = torch.from_numpy(keyed_uniform(seeds, self.step)).to(scores.device)[:, None]
        self.step += 1
        return _invert(probs, uniform)


def keyed_uniform(seeds: np.ndarray, step: int) -> np.ndarray:
    """Return one float64 in [0, 1) per seed: SplitMix64 (Steele et al. 2014) of the seed, ``step`` draws on."""
    with np.errstate(over="ignore"):
        state = _mix(seeds) + np.uint64(step + 1) * np.uint64(0x9E3779B97F4A7C15)
        return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _invert(probs: Tensor, uniform: Tensor) -> Tensor:
    """Return where the cumulative distribution of ``probs`` (n, vocab) first exceeds ``uniform`` (n, 1), as (n,).

    First the block, then the token in it: summing up the whole vocabulary one by one takes three times as long.
    """
    vocab = probs.shape[-1]
    whole = vocab // BLOCK * BLOCK
    sums = probs[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    blocks = torch.cat([sums, probs[:, whole:].sum(-1, keepdim=True)], -1).double().cumsum(-1)
    if not bool(blocks[:, -1].isfinite().all()):  # on CUDA the search would end the process's use of the device
        raise FloatingPointError("the model's logits are no finite numbers: take bfloat16 or float32 as its dtype")
    # Rounding must put no target behind the end, of all or below of a block, where a token might be impossible.
    target = torch.minimum(uniform * blocks[:, -1:], _below(blocks[:, -1:]))
    block = torch.searchsorted(blocks, target, right=True)
    before = torch.where(block > 0, blocks.gather(-1, (block - 1).clamp(min=0)), 0.0)
    tokens = block * BLOCK + torch.arange(BLOCK, device=probs.device)
    within = probs.gather(-1, tokens.clamp(max=vocab - 1)).double().masked_fill(tokens >= vocab, 0.0).cumsum(-1)
    rest = torch.minimum(target - before, _below(within[:, -1:]))
    return tokens.gather(-1, torch.searchsorted(within, rest, right=True))[:, 0]


def _below(value: Tensor) -> Tensor:
    return torch.nextafter(value, torch.zeros_like(value))


class YesMargin(LogitsProcessor):
    """Note logit(yes) - logit(no) at the first token of each reply; changes nothing."""

    def __init__(self, yes_ids: Sequence[int], no_ids: Sequence[int]) -> None:
        self.yes_ids, self.no_ids = list(yes_ids), list(no_ids)
        self.margins: list[float] | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Look at ``scores`` (n, vocab) the first time."""
        if self.margins is None:
            logits = scores.float()
            margin = logits[:, self.yes_ids].logsumexp(-1) - logits[:, self.no_ids].logsumexp(-1)
            self.margins = margin.tolist()
        return scores
