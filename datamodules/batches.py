"""The order of batches: pairs alike in length share one, every rank has its own, and all have equally many."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from synthalign.store import seed_of

WINDOW_BATCHES = 16
"""Pairs are sorted by length inside windows of this many batches of the shuffled table."""


class Steps(Protocol):
    """What the ranks do in an epoch: steps of one batch of positions for every rank, as many in every epoch."""

    def __len__(self) -> int:
        """Return the number of an epoch's steps."""

    def __call__(self, epoch: int) -> list[list[list[int]]]:
        """Return the steps of an epoch, each a batch for every rank."""


class LengthGroupedBatches:
    """Batches of a fixed number of rows, shuffled anew each epoch and fixed by (seed, epoch).

    Every rank gets the same number of batches: up to world_size - 1 of an epoch's batches, other ones each time, are
    left out. Ranks together take the batches of one process.

    Args:
        lengths: Of the rows, tokens.
        batch_size: Rows per batch and rank.
        seed: Of the order.
        world_size: Number of processes.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int, world_size: int = 1) -> None:
        self.lengths, self.batch_size, self.seed, self.world_size = lengths, batch_size, seed, world_size

    def __len__(self) -> int:
        """Return the number of an epoch's steps."""
        return len(range(0, len(self.lengths), self.batch_size)) // self.world_size

    def __call__(self, epoch: int) -> list[list[list[int]]]:
        """Return the steps of an epoch, each a batch for every rank."""
        noise = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        order = torch.randperm(len(self.lengths), generator=noise).tolist()
        window = WINDOW_BATCHES * self.batch_size
        batches = []
        for start in range(0, len(order), window):
            alike = sorted(order[start : start + window], key=lambda row: (self.lengths[row], row))
            batches += [alike[at : at + self.batch_size] for at in range(0, len(alike), self.batch_size)]
        shuffled = [batches[i] for i in torch.randperm(len(batches), generator=noise).tolist()]
        return [shuffled[at * self.world_size : (at + 1) * self.world_size] for at in range(len(self))]


class RankBatches:
    """One rank's batches of an epoch; a batch sampler.

    Args:
        steps: What all ranks do.
        rank: Of this process.
    """

    def __init__(self, steps: Steps, *, rank: int = 0) -> None:
        self.steps, self.rank, self.epoch = steps, rank, 0
        self.done = (0, 0)  # an epoch, and how many of its batches a run that goes on has seen already

    @property
    def sampler(self) -> "RankBatches":
        """Itself: Lightning tells the epoch to the sampler inside a batch sampler, never to a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of one rank."""
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        """Give this rank's batches."""
        for step in self.steps(self.epoch)[self.first :]:
            yield step[self.rank]

    @property
    def first(self) -> int:
        """The batch that the epoch begins with."""
        epoch, seen = self.done
        return seen if epoch == self.epoch else 0


class TrainingLoader(DataLoader[Any]):
    """A loader of RankBatches that a run can go on with inside an epoch.

    It begins with its first batch, not when it is asked for an iterator: Lightning asks before it has restored the
    epoch of the run that it goes on with, and worker processes would be sent the batches of another one.
    """

    batch_sampler: RankBatches
    given = 0  # batches of the epoch, so far

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # an iterator is all that is asked of it
        """Give the batches, counting them."""
        self.given = self.batch_sampler.first
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Say how many batches of which epoch were given."""
        return {"epoch": self.batch_sampler.epoch, "given": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after as many batches of that epoch; the others are whole."""
        self.batch_sampler.done = (state_dict["epoch"], state_dict["given"])


def even_batches(lengths: Sequence[int], batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """Share out held-out rows: each to one rank, once, as many batches to every rank, rows alike in length together.

    Ranks that validate while a model is being trained take every step together, so a rank with fewer batches would
    leave the others waiting. Batches are therefore made smaller rather than unequal in number. Only where there are
    fewer rows than ranks does every rank get all of them.

    Args:
        lengths: Of the rows, tokens.
        batch_size: Rows per batch and rank; a batch of one row may become one of two.
        rank: Of this process.
        world_size: Number of processes.
    """
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    if len(order) < world_size:
        return [[row] for row in order]
    per_rank = min(-(-len(order) // (batch_size * world_size)), len(order) // world_size)
    total = per_rank * world_size
    edges = [len(order) * batch // total for batch in range(total + 1)]
    return [order[edges[batch] : edges[batch + 1]] for batch in range(rank, total, world_size)]
