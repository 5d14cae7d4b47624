"""A plan: a run, its pairs, what its steps take, and the device they are held against."""

from typing import NamedTuple

from synthalign.planning.calibrate import Speed
from synthalign.planning.pairs import Pairs
from synthalign.planning.reading import Read
from synthalign.planning.run import Reckoned


class Plan(NamedTuple):
    """All that is found out."""

    read: Read
    pairs: Pairs
    largest: Reckoned
    typical: Reckoned  # the operations of a batch of mean size
    speed: Speed | None  # None: no GPU is here for a run that wants one, or none was to be tried
    available: int | None  # bytes of a device; None: as above
    available_from: str
    reserve: int  # bytes

    @property
    def left(self) -> int | None:
        """Bytes of a device that neither the peak takes nor the reserve; below 0, so many are lacking."""
        return None if self.available is None else self.available - self.reserve - self.largest.memory.peak

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.pairs.num_batches // self.largest.run.accumulate)

    @property
    def operations(self) -> float:
        """Of an epoch, on all devices."""
        return sum(self.typical.step.operations.values()) / self.pairs.typical.tokens * self.pairs.tokens

    @property
    def epoch_s(self) -> float | None:
        """Seconds of an epoch, all devices computing, none waiting for another."""
        return None if self.speed is None else self.operations / self.speed.operations / self.largest.run.world_size
