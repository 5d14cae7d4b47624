"""All that take the step, on the two batches: timed in turn, or one alone for its memory."""

import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from . import floor, measure, ours, peers
from .measure import Contender
from .ours import Rung
from .scene import DTYPES, Scene, Size, scene

DEFAULT, PLAIN, FULL = "TRL default (checkpointing)", "TRL, no checkpointing", "full fp32 logits"

TOLERANCE = {"fp32": 1e-3, "bf16": 0.05}
"""How far a loss or a gradient may be from TRL's, relative to it."""


class Contest(NamedTuple):
    """A batch, and who takes a step on it."""

    title: str
    one_image: bool
    peers: tuple[str, ...]
    rungs: dict[str, Rung]


CONTESTS = (
    Contest("two pairs, two images", False, (DEFAULT, PLAIN, FULL), ours.PAIRS),
    Contest("four pairs, one image", True, (PLAIN,), ours.ONE_IMAGE),
)


def contender(name: str, contest: Contest, stage: Scene, size: Size) -> Contender:
    """Build one of those that take the step."""
    if name in (DEFAULT, PLAIN):
        folder = tempfile.gettempdir()  # nothing is written there
        return peers.trl(stage, size, folder, one_image=contest.one_image, checkpointing=name == DEFAULT)
    if name == FULL:
        network = ours.network_of(stage)
        return Contender(network, peers.full_logits(network, stage.collated), ours.adamw(network))
    rung = contest.rungs[name]
    network = ours.network_of(stage, fused=rung.fused, checkpointing=rung.checkpointing)
    return Contender(network, ours.step_of(network, rung, stage), ours.adamw(network))


def times(contest: Contest, size: Size, dtype: str, num_rounds: int, device: torch.device) -> dict[str, Any]:
    """Compare every step with TRL's, time them in turn, and count the floor.

    Raises:
        RuntimeError: A step computes something else than TRL's.
    """
    stage = scene(size, one_image=contest.one_image, dtype=DTYPES[dtype], device=device)
    contenders: dict[str, Contender] = {}
    given, failed = {}, {}
    for name in (*contest.peers, *contest.rungs):
        try:
            contenders[name] = contender(name, contest, stage, size)
            given[name] = measure.given(contenders[name])
        except torch.OutOfMemoryError:
            contenders.pop(name, None)
            failed[name] = "out of memory"
    errors = {name: measure.errors(one, given[PLAIN]) for name, one in given.items()}
    if wrong := {name: error for name, error in errors.items() if not max(error) <= TOLERANCE[dtype]}:
        raise RuntimeError(f"{contest.title}, {dtype}: loss and gradient are off from TRL's by {wrong}")

    network = next(contenders[name].network for name in contest.rungs if name in contenders)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    rates = []
    for done in range(num_rounds):
        for name, second in measure.one_round(contenders, device).items():
            taken[name].append(second)
        rates.append(floor.peak(network, stage.batch, DTYPES[dtype]))
        said = ", ".join(f"{name} {one[-1]:.3f}" for name, one in taken.items())
        print(f"{contest.title}, {dtype}, round {done + 1} of {num_rounds}: {said}", file=sys.stderr, flush=True)

    peak = measure.spread(rates).median  # not the best: what else the machine does slows a step as well
    needed = {whole: floor.floor(network, stage.batch, whole=whole)._asdict() for whole in (False, True)}
    rows: list[dict[str, Any]] = [{"name": name, "failed": why} for name, why in failed.items()]
    for name, seconds in taken.items():
        kind = contest.rungs[name].floor if name in contest.rungs else "on_the_fly"
        median = measure.spread(seconds).median
        against = {of: measure.ratios(taken[of], seconds) for of in (PLAIN, DEFAULT) if of in taken}
        rows.append(
            {
                "name": name,
                "seconds": measure.spread(seconds),
                "rounds": seconds,
                "against": against,
                "above_floor": median * peak / needed[False][kind],
                "above_whole": median * peak / needed[True][kind],
                "loss": given[name].loss,
                "errors": errors[name],
            }
        )
    return {"rows": rows, "peak": peak, "rates": rates, "floor": needed[False], "whole": needed[True]}


def memory_of(name: str, size: Size, device: torch.device) -> float:
    """Return the memory that one step on two pairs adds, MiB; in this process nothing else may have happened."""
    contest = CONTESTS[0]
    stage = scene(size, one_image=contest.one_image, dtype=torch.float32, device=device)
    return measure.added_mib(contender(name, contest, stage, size), device)


def in_memory(ask: Callable[[str], float | str]) -> list[dict[str, Any]]:
    """Ask for the memory of every step on two pairs, each in a process of its own; a text says why there is none."""
    rows: list[dict[str, Any]] = []
    for name in (*CONTESTS[0].peers, *CONTESTS[0].rungs):
        found = ask(name)
        rows.append({"name": name, "failed": found} if isinstance(found, str) else {"name": name, "added_mib": found})
        print(f"memory, {name}: {found}", file=sys.stderr, flush=True)
    return rows
