"""Rules: which two of the scored responses to one question make a pair. k: the number of responses.

A tie for the best goes to the first; what is rejected always has a lower score than what is chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, kw_only=True)
class BestWorst:
    """Choose the response with the highest score and reject the one with the lowest; ties go to the first.

    Source: Synth-Align (arXiv 2412.17417), section on response ranking.
    """

    def __call__(self, scores: Sequence[float], seed: int) -> tuple[int, int] | None:
        """Return (position of the best, position of the worst), or None if no two of the k scores differ."""
        positions = range(len(scores))
        best = max(positions, key=scores.__getitem__, default=0)
        worst = min(positions, key=scores.__getitem__, default=0)
        return None if best == worst else (best, worst)


@dataclass(frozen=True, kw_only=True)
class BestRandom:
    """Choose the response with the highest score and reject any other that scores lower, drawn by the seed."""

    def __call__(self, scores: Sequence[float], seed: int) -> tuple[int, int] | None:
        """Return (position of the best, a position below it), or None if no two of the k scores differ."""
        best = max(range(len(scores)), key=scores.__getitem__, default=0)
        lower = [position for position, score in enumerate(scores) if score < scores[best]]
        return (best, Random(seed).choice(lower)) if lower else None


@dataclass(frozen=True, kw_only=True)
class Margin:
    """Choose the response with the highest score and reject the best one that is clearly worse: a near miss.

    Args:
        min_margin: Smallest score(chosen) - score(rejected), in the reward model's unit.
    """

    min_margin: float

    def __post_init__(self) -> None:
        """Refuse a margin that cannot be meant."""
        if not 0 <= self.min_margin < math.inf:
            raise ValueError(f"Margin: min_margin must be a number >= 0, got {self.min_margin}")

    def __call__(self, scores: Sequence[float], seed: int) -> tuple[int, int] | None:
        """Return (position of the best, position of the near miss), or None if none of the k is far enough below."""
        best = max(range(len(scores)), key=scores.__getitem__, default=0)
        below = [
            p for p, score in enumerate(scores) if score < scores[best] and scores[best] - score >= self.min_margin
        ]
        return (best, max(below, key=scores.__getitem__)) if below else None
