"""Learning-rate schedules, as multipliers of the optimizer's own rate."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Rise linearly to 1, then fall along half a cosine.

    Args:
        warmup_ratio: Share of the steps spent rising, in [0, 1).
        floor: Multiplier at the end, in [0, 1].
    """

    warmup_ratio: float = 0.03
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        if not 0 <= self.warmup_ratio < 1 or not 0 <= self.floor <= 1:
            raise ValueError(
                f"warmup_ratio must be in [0, 1) and floor in [0, 1], got {self.warmup_ratio} and {self.floor}"
            )

    def __call__(self, step: int, num_steps: int) -> float:
        """Return the multiplier of optimizer step ``step`` (from 0) of ``num_steps``."""
        warmup = math.ceil(self.warmup_ratio * num_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
