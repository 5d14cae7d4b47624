"""Stages, and the walk of one rank through its share of a stage's shards."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from tqdm import tqdm

from synthalign.batching import noting_halvings
from synthalign.pipeline.making import Rows
from synthalign.store import Landing, Shard


class Stage(NamedTuple):
    """One step of the journey: where it lands, its shards in order, and how rows are made."""

    name: str  # what the bar shows
    landing: Landing
    shards: list[Shard]
    items: Callable[[Shard], list[Any]]  # what a shard's rows are made from, each with its ``key``
    make: Callable[[Shard, list[Any]], Rows]  # makes the rows of some of a shard's items
    part: Any = None  # released when the stage is over
    at_once: bool = False  # whether a shard always lands in one file: rows that had landed before are made again


def walk(stage: Stage, rank: int, world_size: int) -> None:
    """Make whatever is missing in this rank's shards of a stage."""
    own = stage.shards[rank::world_size]
    stage.landing.look()
    todo = [shard for shard in own if not stage.landing.has(shard)]
    if not todo:
        return
    total = sum(len(shard.rows) for shard in own)
    done = total - sum(len(shard.rows) for shard in todo)
    with tqdm(total=total, initial=done, desc=stage.name, unit="prompt", disable=rank != 0) as bar:
        for shard in todo:
            _land(stage, shard)
            bar.update(len(shard.rows))
    if stage.part is not None:
        stage.part.release()


def _land(stage: Stage, shard: Shard) -> None:
    items = stage.items(shard)
    wanted = set() if stage.at_once else set(stage.landing.missing(shard, [item.key for item in items]))
    some = items if stage.at_once else [item for item in items if item.key in wanted]
    if not some:
        return
    with noting_halvings() as notes:
        rows = stage.make(shard, some)
    for note in dict.fromkeys(notes):
        tqdm.write(f"{stage.name}, shard {shard.name}: {note}", file=sys.stderr)
    land = stage.landing.write if len(some) == len(items) else stage.landing.add
    land(shard, rows, notes)
