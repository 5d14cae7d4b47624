"""Malformed inputs, drawn by hypothesis from a seed: each spoils a copy of a valid world, runs a command, is judged."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from malformed import adapters, checkpoints, configs, pictures, sets
from malformed.judged import Outcome, contents, judge
from malformed.torn import Draw
from malformed.world import World

KINDS: dict[str, Callable[[Path, Draw], tuple[list[str], str]]] = {
    "config": configs.malform,
    "pairs": sets.malform,
    "image": pictures.malform,
    "adapter": adapters.malform,
    "checkpoint": checkpoints.malform,
}


class Example(NamedTuple):
    """What was done, the command that met it, and how that ended."""

    done: str
    argv: list[str]
    outcome: Outcome


def run(kind: str, world: World, count: int, first: int = 0) -> list[Example]:
    """Run so many examples of a kind; the same seed gives the same ones."""
    # Where hypothesis keeps what it reads of the code it tests; by default a folder where it was started.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(world.folder.parent / "hypothesis"))
    found: list[Example] = []
    policy = contents(world.policy)

    @seed(first)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def each(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "world"
            shutil.copytree(world.folder, folder)
            argv, done = KINDS[kind](folder, data.draw)
            found.append(Example(done, argv, judge(folder, argv)))

    each()
    assert contents(world.policy) == policy
    return found
