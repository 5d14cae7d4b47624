"""Parts of a synthesis that need no weights: they draw, answer and score by rule, and count what they are asked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from dpo.drawn_pairs import draw
from PIL.Image import Image

from synthalign.types import ImageRequest, Reply

ASKED: Counter[str] = Counter()
"""Calls of each part in this process."""


@dataclass(frozen=True, kw_only=True)
class Painter:
    """Draws "<colour> <shape> on <colour>"; like many a model, it draws from the global random state besides."""

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image]:
        ASKED["generate"] += 1
        torch.rand(7)
        return [draw(request.prompt, (36 + request.seed % 9, 36)) for request in requests]

    def release(self) -> None:
        """It holds nothing."""


@dataclass(frozen=True, kw_only=True)
class Width:
    """Prefers wide images."""

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> torch.Tensor:
        return torch.tensor([float(image.width) for image in images])

    def release(self) -> None:
        """It holds nothing."""


@dataclass(frozen=True, kw_only=True)
class Counting:
    """Counts up to a number that its seed gives: answers of many lengths."""

    def respond(
        self, images: Sequence[Image], questions: Sequence[str], seeds: Sequence[int] | None = None
    ) -> list[Reply]:
        ASKED["respond"] += 1
        assert seeds is not None
        return [Reply(" ".join(str(n) for n in range(1, 2 + seed % 12))) for seed in seeds]

    def release(self) -> None:
        """It holds nothing."""


@dataclass(frozen=True, kw_only=True)
class Brevity:
    """Prefers short answers."""

    def score(
        self, prompts: Sequence[str], images: Sequence[Image], questions: Sequence[str], responses: Sequence[str]
    ) -> torch.Tensor:
        return torch.tensor([-float(len(response)) for response in responses])

    def release(self) -> None:
        """It holds nothing."""
