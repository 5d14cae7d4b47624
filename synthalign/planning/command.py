"""``synthalign plan``: reads a configuration, reckons its run, prints what it takes."""

import argparse
import json
import math
import os
import sys
from typing import Any

import torch

from synthalign.commands import Parser
from synthalign.plan.report import GIB, Section, plain, show, verdict
from synthalign.planning.calibrate import Speed, calibrate
from synthalign.planning.pairs import Pairs, assumed, of_run, parse_lengths
from synthalign.planning.plan import Plan
from synthalign.planning.reading import Read, read
from synthalign.planning.run import Reckoned, reckon
from synthalign.planning.sections import sections
from synthalign.planning.ways import ways

CALIBRATION_STEPS = 2
BOUNDS: dict[str, tuple[float, float]] = {
    "num_pairs": (1, math.inf),
    "image_size": (1, 2**14),
    "tflops": (1e-6, 1e6),
    "memory_gib": (1e-6, 1e6),
    "reserve_gib": (0, 1e6),
    "calibrate": (0, 1000),
}
"""The least and the most that an option may be."""


def plan(args: list[str]) -> None:
    """Print what a run will take.

    Args:
        args: The command line, the command first.

    Raises:
        ValueError: An option is out of bounds, ``fit`` would refuse the run, or plan does not know it.
    """
    options, rest = _parser().parse_known_args(args[1:])
    for name, (least, most) in BOUNDS.items():
        if (value := getattr(options, name)) is not None and not least <= value <= most:
            raise ValueError(f"--{name.replace('_', '-')} must be from {least:g} to {most:g}, got {value:g}")
    if options.memory_gib is not None and options.reserve_gib >= options.memory_gib:
        raise ValueError(
            f"--reserve-gib {options.reserve_gib:g} is all of --memory-gib {options.memory_gib:g}: keep less free"
        )
    lengths = parse_lengths(options.tokens)
    found = read(rest)
    pairs = of_run(found.data, found.run.world_size) if options.num_pairs is None else None
    if pairs is None:
        pairs = assumed(
            found.data,
            found.run.config,
            lengths,
            num_pairs=options.num_pairs,
            image_size=options.image_size,
            world_size=found.run.world_size,
        )
    largest = reckon(found.run, pairs.largest.batch)
    typical = largest if pairs.typical is pairs.largest else reckon(found.run, pairs.typical.batch)
    speed = _speed(options, typical, pairs)
    available, source = _available(found, options.memory_gib)
    made = Plan(found, pairs, largest, typical, speed, available, source, round(options.reserve_gib * GIB))
    if options.json:
        sys.stdout.write(json.dumps(as_json(made), indent=1) + "\n")
        return
    show(sections(made))
    if made.available is None or made.left is None:
        sys.stdout.write(
            "no GPU is here: say what the run will have, --memory-gib of a device (an H100: 80) and --tflops as used "
            "(an H100 at 40 % of its peak: 400)\n"
        )
        return
    if made.left < 0:
        show([Section("What would change it", list(ways(made)))])
    sys.stdout.write(f"{verdict(largest.memory.peak, made.available, made.reserve)}\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="synthalign plan",
        description="Say what a run takes before it runs: what is trained, memory of a device by part, steps and time "
        "of an epoch. Takes whatever fit takes (synthalign fit --help), and loads none of its weights.",
        allow_abbrev=False,
    )
    parser.add_argument("--num-pairs", type=int, metavar="N", help="reckon with so many made-up pairs, not the run's")
    parser.add_argument(
        "--tokens",
        type=int,
        nargs=3,
        default=[80, 200, 150],
        metavar=("QUESTION", "CHOSEN", "REJECTED"),
        help="lengths of made-up pairs; the question with its template, the image not counted (80 200 150)",
    )
    parser.add_argument("--image-size", type=int, default=512, metavar="PX", help="sides of their images (512)")
    parser.add_argument("--memory-gib", type=float, metavar="GIB", help="of a device (that of this machine's)")
    parser.add_argument(
        "--reserve-gib", type=float, default=2.0, metavar="GIB", help="kept free: context, libraries, fragments (2)"
    )
    parser.add_argument("--tflops", type=float, metavar="RATE", help="operations of a device, 1e12 a second, as used")
    parser.add_argument(
        "--calibrate",
        type=int,
        default=CALIBRATION_STEPS,
        metavar="STEPS",
        help=f"without --tflops, real steps of two layers on this device; 0: none ({CALIBRATION_STEPS})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _speed(options: argparse.Namespace, typical: Reckoned, pairs: Pairs) -> Speed | None:
    if options.tflops is not None:
        return Speed(options.tflops * 1e12, "as given by --tflops")
    if not options.calibrate or (typical.run.on_cuda and not torch.cuda.is_available()):
        return None
    device = torch.device("cuda" if typical.run.on_cuda else "cpu")
    return calibrate(typical.run, pairs.typical.batch, device, options.calibrate)


def _available(found: Read, given: float | None) -> tuple[int | None, str]:
    if given is not None:
        return round(given * GIB), "as given by --memory-gib"
    if found.run.on_cuda and not torch.cuda.is_available():
        return None, "no GPU is here: --memory-gib"
    if found.run.on_cuda:
        return torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    ranks = found.run.world_size // found.trainer.num_nodes
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // ranks, "this machine's memory" if ranks == 1 else f"this machine's memory, a share of {ranks}"


def as_json(made: Plan) -> dict[str, Any]:
    """Return a plan for programs; sizes in bytes, times in seconds, null where no GPU is here to tell."""
    found, memory = made.largest, made.largest.memory
    return {
        "trained": found.shares.trained_numbers,
        "frozen": found.frozen,
        "pairs": made.pairs.num_pairs,
        "pairs_from": made.pairs.source,
        "steps_per_epoch": made.steps,
        "tokens_per_epoch": made.pairs.tokens,
        "largest_batch_tokens": made.pairs.largest.tokens,
        "world_size": found.run.world_size,
        "spread": found.run.spread,
        "layout_carried": found.carried,
        "weights": plain(found.shares),
        "optimizer": plain(found.optimizer),
        "memory": {**plain(memory), "peak": memory.peak, "lasting": memory.lasting, "step": memory.step},
        "traffic_per_step": plain(found.traffic),
        "operations_per_epoch": made.operations,
        "operations_of_typical_batch": made.typical.step.operations,
        "speed": None if made.speed is None else plain(made.speed),
        "epoch_s": made.epoch_s,
        "available": made.available,
        "reserve": made.reserve,
        "fits": None if made.left is None else made.left >= 0,
        "left": made.left,
        "ways": [plain(row) for row in ways(made)] if made.left is not None and made.left < 0 else [],
    }
