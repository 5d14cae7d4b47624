"""Batches filled up to a limit: pairs alike in length beside each other, pairs of one image together where they fit."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from synthalign.store import seed_of

OPEN_BATCHES = 16
"""A pair goes into the oldest of this many newest batches that has room; older ones hold pairs of another length."""

SIGNIFICANT_BITS = 5
"""Lengths are rounded up to this many, by 2 % on average, so that some are equal and can change places."""


class Load(NamedTuple):
    """What a pair costs: tokens of its prompt and both responses, of which so many are its image's."""

    tokens: int
    image: str
    image_tokens: int


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How much a batch holds: ``max_tokens`` tokens or, without, ``batch_size`` pairs.

    Args:
        batch_size: Pairs.
        max_tokens: Tokens of prompts and both responses; a pair above it is a batch of its own.
        shares_images: Whether pairs of one image stay together where they fit, its tokens counting once.
    """

    batch_size: int
    max_tokens: int | None = None
    shares_images: bool = False

    def tokens(self, loads: Iterable[Load]) -> int:
        """Count the tokens of a batch."""
        loads = list(loads)
        total = sum(load.tokens for load in loads)
        if not self.shares_images:
            return total
        once = {load.image: load.image_tokens for load in loads}
        return total - sum(load.image_tokens for load in loads) + sum(once.values())

    def size(self, loads: Sequence[Load]) -> int:
        """Measure a batch in the limit's unit."""
        return len(loads) if self.max_tokens is None else self.tokens(loads)

    @property
    def most(self) -> int:
        """The limit, in its unit."""
        return self.batch_size if self.max_tokens is None else self.max_tokens


class Unit(NamedTuple):
    """Rows that stay together, what they take of the limit, and the tokens of the longest, rounded up."""

    rows: list[int]
    size: int
    longest: int


Batch = list[list[int]]
"""Rows of a batch, those that should stay together in one list."""


class FilledBatches:
    """Batches for training, filled up to a limit; every rank has as many, and those of one step are of a size.

    Each epoch fills them anew. Their number never changes: pairs are placed by their rounded lengths, longest first,
    and only which of the pairs of one rounded length goes where is drawn.

    Nothing is left out of an epoch where batches can be split until their number divides by the ranks'. Where that
    would take more pairs than there are, every pair is a batch, and up to world_size - 1 pairs, other ones each
    epoch, are left out.

    Args:
        loads: Of the rows.
        limit: Of a batch.
        seed: Of what is drawn.
        world_size: Number of processes.
    """

    def __init__(self, loads: Sequence[Load], limit: Limit, *, seed: int, world_size: int = 1) -> None:
        self.loads, self.limit, self.seed, self.world_size = loads, limit, seed, world_size
        self.units = units(loads, limit)
        self.num_steps = len(self(0))

    def __len__(self) -> int:
        """Return the number of an epoch's steps."""
        return self.num_steps

    def __call__(self, epoch: int) -> list[list[list[int]]]:
        """Return the steps of an epoch, each a batch for every rank."""
        noise = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        drawn = [self.units[i] for i in torch.randperm(len(self.units), generator=noise).tolist()]
        batches = split(fill(drawn, self.limit), self.loads, self.limit, self.world_size)
        if surplus := len(batches) % self.world_size:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=noise).tolist()][surplus:]
        steps = deal(batches, self.loads, self.limit, self.world_size)
        return [steps[i] for i in torch.randperm(len(steps), generator=noise).tolist()]


def held_out_batches(loads: Sequence[Load], limit: Limit, *, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """Share out held-out rows: each to one rank, once, as many batches to every rank.

    Where batches of one pair cannot be split to make their number divide, the smallest are joined. Only where there
    are fewer rows than ranks does every rank get all of them.

    Args:
        loads: Of the rows.
        limit: Of a batch.
        rank: Of this process.
        world_size: Number of processes.
    """
    if len(loads) < world_size:
        return [[row] for row in range(len(loads))]
    batches = split(fill(units(loads, limit), limit), loads, limit, world_size)
    while len(batches) % world_size:
        *batches, last, least = sorted(batches, key=lambda batch: -_tokens(batch, loads, limit))
        batches.append(last + least)
    return [step[rank] for step in deal(batches, loads, limit, world_size)]


def batches_by_length(loads: Sequence[Load], limit: Limit) -> list[list[int]]:
    """Fill batches for one process, longest pairs first: if memory is short, that shows at once."""
    return [_rows(batch) for batch in fill(units(loads, limit), limit)]


def units(loads: Sequence[Load], limit: Limit) -> list[Unit]:
    """Group rows that stay together: those of one image, as far as they fit, or else each on its own."""
    images: dict[str | int, list[int]] = {}
    for row, load in enumerate(loads):
        images.setdefault(load.image if limit.shares_images else row, []).append(row)
    found = []
    for rows in images.values():
        together: list[list[int]] = []
        for row in sorted(rows, key=lambda row: -loads[row].tokens):
            if together and limit.size([loads[i] for i in [*together[-1], row]]) <= limit.most:
                together[-1].append(row)
            else:
                together.append([row])
        found += [_unit(part, loads, limit) for part in together]
    return found


def _unit(rows: list[int], loads: Sequence[Load], limit: Limit) -> Unit:
    size = limit.size([loads[row] for row in rows])
    if limit.max_tokens is not None:  # what fits still fits
        size = min(rounded(size), limit.most) if size <= limit.most else rounded(size)
    return Unit(rows, size, rounded(max(loads[row].tokens for row in rows)))


def rounded(count: int) -> int:
    """Round up to SIGNIFICANT_BITS."""
    spare = max(count.bit_length() - SIGNIFICANT_BITS, 0)
    return -(-count >> spare) << spare


def fill(parts: Sequence[Unit], limit: Limit) -> list[Batch]:
    """Put units into batches, the longest first; those alike stay in the order given.

    How many batches it takes depends on the sizes and lengths alone, not on that order.
    """
    batches: list[Batch] = []
    room: list[int] = []
    for unit in sorted(parts, key=lambda unit: (-unit.longest, -unit.size)):
        newest = range(max(0, len(batches) - OPEN_BATCHES), len(batches))
        place = next((i for i in newest if unit.size <= room[i]), None)
        if place is None:
            batches.append([unit.rows])
            room.append(limit.most - unit.size)
        else:
            batches[place].append(unit.rows)
            room[place] -= unit.size
    return batches


def split(batches: list[Batch], loads: Sequence[Load], limit: Limit, world_size: int) -> list[Batch]:
    """Halve batches, the largest first, until their number divides by the ranks' or each is one pair.

    Pairs of an image are torn apart only when there is nothing else to split.
    """
    batches = list(batches)
    weights = [_tokens(batch, loads, limit) for batch in batches]
    for _ in range(-len(batches) % world_size):
        at = max(range(len(batches)), key=lambda i: (len(batches[i]) > 1, len(_rows(batches[i])) > 1, weights[i]))
        parts = batches[at] if len(batches[at]) > 1 else [[row] for row in batches[at][0]]
        if len(parts) == 1:
            break
        batches[at : at + 1] = halves = [parts[::2], parts[1::2]]
        weights[at : at + 1] = [_tokens(half, loads, limit) for half in halves]
    return batches


def deal(batches: Sequence[Batch], loads: Sequence[Load], limit: Limit, world_size: int) -> list[list[list[int]]]:
    """Make steps of one batch for every rank, alike in tokens: a rank waits for the slowest."""
    alike = sorted(batches, key=lambda batch: -_tokens(batch, loads, limit))
    return [[_rows(batch) for batch in alike[at : at + world_size]] for at in range(0, len(alike), world_size)]


def _rows(batch: Batch) -> list[int]:
    return [row for part in batch for row in part]


def _tokens(batch: Batch, loads: Sequence[Load], limit: Limit) -> int:
    return limit.tokens(loads[row] for row in _rows(batch))
