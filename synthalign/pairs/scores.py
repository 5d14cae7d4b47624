"""Gates for pairs whose scores cannot be trusted to tell the better response."""

import math
from dataclasses import dataclass

from synthalign.types import Drop, PickedPair


@dataclass(frozen=True, kw_only=True)
class TooClose:
    """Refuse a pair that the reward model hardly tells apart.

    Args:
        min_margin: Smallest score(chosen) - score(rejected), in the reward model's unit. Unscored pairs pass.
    """

    min_margin: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a margin that no pair could have."""
        if not abs(self.min_margin) < math.inf:
            raise ValueError(f"TooClose: min_margin must be a finite number, got {self.min_margin}")

    def __call__(self, pair: PickedPair) -> Drop | None:
        """Say ``too_close``, or None."""
        if pair.margin is not None and not pair.margin > self.min_margin:
            return Drop("too_close", f"margin {pair.margin:.4g} is not above {self.min_margin:g}")
        return None


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """Refuse a pair on which a reward that sees the image contradicts one that does not.

    What the text alone makes preferable (fluency, length, a likely guess) and what the image makes true point in
    opposite directions there, so that one of the two is wrong about the pair.

    Args:
        blind: Name, in the mixture of rewards, of the part that does not look at the image.
        aware: Name of the part that does.
        min_aware: Also refuse a pair whose margin by ``aware`` is below this, in its unit; None looks at signs only.
    """

    blind: str
    aware: str
    min_aware: float | None = None

    def __call__(self, pair: PickedPair) -> Drop | None:
        """Say ``disagreement``, or None.

        Raises:
            ValueError: The pair was not scored by parts of these names.
        """
        if missing := [name for name in (self.blind, self.aware) if name not in pair.margins]:
            there = ", ".join(map(repr, pair.margins)) or "no part of a mixture"
            raise ValueError(f"Disagreement: no margin by {missing[0]!r}; the pair was scored by {there}")
        blind, aware = pair.margins[self.blind], pair.margins[self.aware]
        # Put so that NaN is refused. Signs, not the product, which can vanish.
        agree = (blind >= 0 and aware >= 0) or (blind <= 0 and aware <= 0)
        if agree and (self.min_aware is None or aware >= self.min_aware):
            return None
        return Drop("disagreement", f"margin {blind:.4g} by {self.blind}, {aware:.4g} by {self.aware}")
