"""The order of training: pairs alike in length share a batch, and every rank sees its own."""

from collections.abc import Iterator, Sequence

import torch

WINDOW_BATCHES = 16
"""Pairs are sorted by length inside windows of this many batches of the shuffled table."""


class LengthGroupedBatches:
    """Batches of positions, shuffled anew each epoch and fixed by (seed, epoch).

    Every rank gets the same number of batches: up to world_size - 1 of an epoch's batches, other ones each time, are
    left out.

    Args:
        lengths: Of the rows, tokens.
        batch_size: Rows per batch and rank.
        seed: Of the order.
        rank: Of this process.
        world_size: Number of processes.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.rank, self.world_size, self.epoch = rank, world_size, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of one rank."""
        return len(range(0, len(self.lengths), self.batch_size)) // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        """Give this rank's batches."""
        noise = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=noise).tolist()
        window = WINDOW_BATCHES * self.batch_size
        batches = []
        for start in range(0, len(order), window):
            alike = sorted(order[start : start + window], key=lambda row: (self.lengths[row], row))
            batches += [alike[at : at + self.batch_size] for at in range(0, len(alike), self.batch_size)]
        shuffled = [batches[i] for i in torch.randperm(len(batches), generator=noise).tolist()]
        yield from shuffled[self.rank : len(self) * self.world_size : self.world_size]
