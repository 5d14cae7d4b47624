"""Makes small JPEGs of a run's images, as large as a budget of bytes allows."""

import base64
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from typing import Any, Generic, NamedTuple, TypeVar

from PIL import Image

from synthalign.pages.joined import Picture
from synthalign.pages.markup import data


class Size(NamedTuple):
    """Longer sides in pixels, of the best image and of the others (0: left out), and the JPEG quality."""

    best: int
    other: int
    quality: int


SIZES = (
    Size(384, 160, 70),
    Size(320, 128, 70),
    Size(256, 112, 68),
    Size(208, 88, 65),
    Size(160, 64, 60),
    Size(128, 0, 55),
    Size(96, 0, 50),
    Size(64, 0, 40),
    Size(0, 0, 0),
)
"""From what is wanted down to what can still be recognised, and to no image at all."""

TINY = 64
"""Longer side, pixels, below which an image is a drawing in pixels rather than a photograph."""

AT_ONCE = 16
"""Pictures that are in memory together, drawn images and all."""

T = TypeVar("T")


class Budget(Generic[T]):
    """Chooses the sizes so that all pictures together stay within a number of bytes.

    Args:
        room: Bytes for all pictures.
        count: How many there will be.
        sample: Some of them.
        page: Writes what the page holds of a picture of some size.
    """

    def __init__(self, room: float, count: int, sample: Sequence[T], page: Callable[[T, Size], str]) -> None:
        self.room, self.left, self.page = room, count, page
        self.used: Counter[Size] = Counter()
        with _pool() as pool:
            self.costs = [sum(map(len, pool.map(page, sample, repeat(size)))) / max(len(sample), 1) for size in SIZES]
        self.level = 0
        self._step_down()

    @property
    def least(self) -> float:
        """Bytes of all pictures without any image."""
        return self.costs[-1] * self.left

    @property
    def size(self) -> Size:
        """What the next pictures may have."""
        return SIZES[self.level]

    def fits(self, num_bytes: int) -> bool:
        """Whether pictures of the present size fit; if not, the size is smaller from here on."""
        if num_bytes <= self.room or self.size == SIZES[-1]:
            return True
        self.level += 1
        return False

    def take(self, count: int, num_bytes: int) -> None:
        """Count pictures that were written at the present size."""
        self.used[self.size] += count
        self.left -= count
        self.room -= num_bytes
        self._step_down()

    def note(self) -> str:
        """Say what was saved, and where; nothing if nothing was."""
        said = [f"{count} of the best images {_shown(size)}" for size, count in self.used.items() if size != SIZES[0]]
        return f"To stay within the size limit, {'; '.join(said)}. A larger --max-mb shows more." if said else ""

    def _step_down(self) -> None:
        while self.level + 1 < len(SIZES) and self.costs[self.level] * self.left > self.room:
            self.level += 1


def _shown(size: Size) -> str:
    if not size.best:
        return "and their losing ones are left out"
    others = f"the losing ones {size.other} px" if size.other else "the losing ones are left out"
    return f"have {size.best} px instead of {SIZES[0].best}, {others}"


def written(pictures: Iterable[T], budget: Budget[T]) -> Iterator[tuple[T, str]]:
    """Give each picture, and what the page holds of it as JSON, as large as the budget allows."""
    rest = iter(pictures)
    with _pool() as pool:
        while some := list(islice(rest, AT_ONCE)):
            made = list(pool.map(budget.page, some, repeat(budget.size)))
            while not budget.fits(sum(map(len, made))):
                made = list(pool.map(budget.page, some, repeat(budget.size)))
            budget.take(len(some), sum(map(len, made)))
            yield from zip(some, made, strict=True)


def page_of(picture: Picture, size: Size) -> str:
    """Write what the gallery holds of a picture."""
    return data(small(picture, size))


def small(picture: Picture, size: Size) -> dict[str, Any]:
    """Return a picture as the page holds it.

    Raises:
        ValueError: An image cannot be read.
    """
    best = picture.best if picture.best is not None else _highest(picture.candidates)
    candidates = []
    for place, candidate in enumerate(picture.candidates):
        side = size.best if place == best else size.other
        image = None
        if side:
            image = base64.b64encode(jpeg(candidate["image"], side, size.quality)).decode()
        shown = {key: candidate.get(key) for key in ("seed", "guidance_scale", "score", "scores")}
        shown["seed"] = None if shown["seed"] is None else str(shown["seed"])  # JavaScript's numbers end at 2^53
        candidates.append({**shown, "image": image})
    return {"best": best, "candidates": candidates}


def jpeg(content: bytes, side: int, quality: int) -> bytes:
    """Scale an encoded image down to a longer side in pixels; a smaller one keeps its size.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"a drawn image cannot be read ({error}): delete its shard and run again") from None
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    stream = io.BytesIO()
    if max(image.size) < TINY:
        image.save(stream, "JPEG", quality=92, subsampling=0)  # single pixels count, and cost little
    else:
        image.save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def _highest(candidates: Sequence[dict[str, Any]]) -> int:
    scored = [(one["score"], -place) for place, one in enumerate(candidates) if one.get("score") is not None]
    return -max(scored)[1] if scored else 0


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1)  # Pillow lets other threads run while it works
