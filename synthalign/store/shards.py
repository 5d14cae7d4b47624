"""Tables cut into shards: what is computed, lands and may be lost at once."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from synthalign.store.recipes import digest, seed_of

HASH_BITS = 63
"""Of the hash of an id, whose leading bits say to which shard it belongs."""


class Shard(NamedTuple):
    """A fixed share of a stage's input: its number among the shards, its place, the digest of its rows, the rows."""

    number: int
    place: str
    digest: str
    rows: Sequence[Any]

    @property
    def name(self) -> str:
        """File name of the shard in every landing."""
        return f"{self.place}-{self.digest}.parquet"


def shards_of(rows: Sequence[Any], size: int) -> list[Shard]:
    """Cut a table into shards of ``size`` consecutive rows; the last may be shorter. Rows are JSON-able."""
    cut = [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]
    return [Shard(number, f"{number:05d}", digest(part), part) for number, part in enumerate(cut)]


def hash_of(row_id: str) -> int:
    """Return the hash of an id, HASH_BITS bits."""
    return seed_of("shard", row_id)


def shards_by_id(
    hashes: np.ndarray, contents: np.ndarray, size: int, rows: Callable[[np.ndarray], Sequence[Any]]
) -> list[Shard]:
    """Cut a table into shards of about ``size`` rows whose ids' hashes begin alike.

    To which shard a row belongs depends on its id and the number of rows alone: not on the order of the table, and not
    on which other rows there are. With twice as many rows each shard falls into two.

    Args:
        hashes: Of the rows' ids, (n,) unsigned integers of HASH_BITS bits.
        contents: A name for what each row holds, (n,) unsigned integers; a shard's digest is made of them.
        size: Rows of a shard, on average within a factor of the square root of 2.
        rows: Gives the rows at some positions, lazily if there are many.

    Returns:
        The shards that have rows, in the order of their places; inside, rows are in the order of the hashes.
    """
    if not len(hashes):
        return []
    level = max(0, round(math.log2(len(hashes) / size)))
    order = np.lexsort((contents, hashes))
    # A shift by all the bits is not defined, so the level is split in two.
    heads = ((hashes[order] >> np.uint64(HASH_BITS - 1 - level)) >> np.uint64(1)).astype(np.int64)
    starts = np.flatnonzero(np.diff(heads, prepend=-1))
    shards = []
    for number, positions in enumerate(np.split(order, starts[1:])):
        place = f"{int(heads[starts[number]]):0{level}b}" if level else ""
        shards.append(Shard(number, f"h{place}", digest(contents[positions].tolist()), rows(positions)))
    return shards
