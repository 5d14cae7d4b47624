"""A gate for pairs of very unequal length: what they would teach is length."""

from dataclasses import dataclass

from synthalign.pairs.wording import words
from synthalign.types import Drop, PickedPair


@dataclass(frozen=True, kw_only=True)
class LengthRatio:
    """Refuse a pair whose chosen response is much shorter or much longer than the rejected one.

    Args:
        min_ratio: Smallest length(chosen) / length(rejected).
        max_ratio: Largest one.
        floor: Responses shorter than this count as this long, in words (letters, where no spaces are set): so "No."
            may stand against a sentence, and by default against a hundred words.
    """

    min_ratio: float = 0.1
    max_ratio: float = 10.0
    floor: int = 10

    def __post_init__(self) -> None:
        """Refuse a window without a pair of equal lengths in it."""
        if not 0 <= self.min_ratio <= 1 <= self.max_ratio or self.floor < 1:
            raise ValueError(
                "LengthRatio needs min_ratio <= 1 <= max_ratio and floor >= 1, got "
                f"{self.min_ratio:g}, {self.max_ratio:g} and {self.floor}"
            )

    def __call__(self, pair: PickedPair) -> Drop | None:
        """Say ``length_ratio``, or None."""
        chosen, rejected = len(words(pair.chosen)), len(words(pair.rejected))
        ratio = max(chosen, self.floor) / max(rejected, self.floor)
        if self.min_ratio <= ratio <= self.max_ratio:
            return None
        return Drop(
            "length_ratio",
            f"{chosen} words against {rejected}: ratio {ratio:.3g} is outside {self.min_ratio:g} to {self.max_ratio:g}",
        )
