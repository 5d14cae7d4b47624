"""Several rewards as one: a weighted sum."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor

from synthalign.types import ImageReward, ResponseReward


@dataclass(frozen=True, kw_only=True)
class ImageMixture:
    """Scores an image by the weighted sum of several rewards' scores: an ImageReward.

    Rewards differ in scale: a weight is also what makes their scores comparable.

    Args:
        parts: The rewards, by names of your choice.
        weights: Of the parts, by the same names; 1 for each by default. A part of weight 0 is a witness: the pipeline
            records its scores, and they do not count.
    """

    parts: dict[str, ImageReward]
    weights: dict[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuse weights that do not fit the parts."""
        object.__setattr__(self, "weights", _resolved(self.parts, self.weights))

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Tensor:
        """Return n scores, shape (n,), float32; NaN where a part that counts has no finite score."""
        weights = _resolved(self.parts, self.weights)
        counted = [name for name, weight in weights.items() if weight]
        return _tensor(combine(weights, {name: self.parts[name].score(prompts, images).tolist() for name in counted}))

    def release(self) -> None:
        """Free the memory of the weights of all parts."""
        for part in self.parts.values():
            part.release()


@dataclass(frozen=True, kw_only=True)
class ResponseMixture:
    """Scores a response by the weighted sum of several rewards' scores: a ResponseReward.

    Rewards differ in scale: a weight is also what makes their scores comparable.

    Args:
        parts: The rewards, by names of your choice.
        weights: Of the parts, by the same names; 1 for each by default. A part of weight 0 is a witness: the pipeline
            records its scores, and they do not count.
    """

    parts: dict[str, ResponseReward]
    weights: dict[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuse weights that do not fit the parts."""
        object.__setattr__(self, "weights", _resolved(self.parts, self.weights))

    def score(
        self, prompts: Sequence[str], images: Sequence[Image], questions: Sequence[str], responses: Sequence[str]
    ) -> Tensor:
        """Return n scores, shape (n,), float32; NaN where a part that counts has no finite score."""
        weights = _resolved(self.parts, self.weights)
        counted = [name for name, weight in weights.items() if weight]
        scores = {name: self.parts[name].score(prompts, images, questions, responses).tolist() for name in counted}
        return _tensor(combine(weights, scores))

    def release(self) -> None:
        """Free the memory of the weights of all parts."""
        for part in self.parts.values():
            part.release()


def combine(weights: Mapping[str, float], scores: Mapping[str, Sequence[float | None]]) -> list[float | None]:
    """Sum what the parts of a mixture say of n rows.

    Args:
        weights: Of the parts, by name.
        scores: The parts' scores of the n rows, by name; those of weight 0 may be left out.

    Returns:
        n sums; None where a part of another weight than 0 has no finite score.
    """
    counted = [(weight, scores[name]) for name, weight in weights.items() if weight]
    sums: list[float | None] = []
    for row in zip(*(column for _, column in counted), strict=True):
        terms = [math.nan if score is None else weight * score for (weight, _), score in zip(counted, row, strict=True)]
        total = sum(terms)
        sums.append(total if math.isfinite(total) else None)
    return sums


def _resolved(parts: Mapping[str, object], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return a weight for each part, in the parts' order.

    Raises:
        ValueError: There are no parts, names differ, or nothing counts.
    """
    if not parts:
        raise ValueError("parts of a mixture must not be empty")
    if weights is None:
        weights = dict.fromkeys(parts, 1.0)
    if odd := [name for name in weights if name not in parts]:
        raise ValueError(f"weights name {odd[0]!r}, which is no part of the mixture: {', '.join(parts)}")
    if missing := [name for name in parts if name not in weights]:
        raise ValueError(f"weights leave out the part {missing[0]!r}: give it one, 0 if it must not count")
    if unfit := [name for name in parts if not math.isfinite(weights[name])]:
        raise ValueError(f"the weight of {unfit[0]!r} must be finite, got {weights[unfit[0]]}")
    if not any(weights.values()):
        raise ValueError("all weights of the mixture are 0: nothing would count")
    return {name: float(weights[name]) for name in parts}


def _tensor(sums: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if total is None else total for total in sums])
