"""``synthalign plan``: reads a configuration, reckons its run, prints what it takes."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from synthalign.commands import Parser
from synthalign.plan.report import GIB, Row, Section, duration, number, plain, show, size, verdict
from synthalign.planning.batches import tokens_of
from synthalign.planning.calibrate import Rate, calibrate
from synthalign.planning.pairs import Pairs, assumed, of_run, parse_lengths
from synthalign.planning.reading import Read, read
from synthalign.planning.run import Reckoned, reckon, spread_over

CALIBRATION_STEPS = 2
OTHER_DEVICES = (2, 4, 8, 16, 32, 64)
"""Numbers of devices that are tried where a run does not fit."""


class Plan(NamedTuple):
    """All that is found out."""

    read: Read
    pairs: Pairs
    largest: Reckoned
    typical: Reckoned  # the operations of a batch of mean size
    rate: Rate | None
    available: int  # bytes of a device
    available_said: str
    reserve: int

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.pairs.num_batches // self.largest.run.accumulate)

    @property
    def operations(self) -> float:
        """Of an epoch, on all devices."""
        return sum(self.typical.step.operations.values()) / tokens_of(self.pairs.typical) * self.pairs.tokens

    @property
    def epoch_s(self) -> float | None:
        """Seconds of an epoch, all devices computing, none waiting for another."""
        return None if self.rate is None else self.operations / self.rate.operations / self.largest.run.world_size


def plan(args: list[str]) -> None:
    """Print what a run will take.

    Args:
        args: The command line, the command first.
    """
    options, rest = _parser().parse_known_args(args[1:])
    lengths = parse_lengths(options.tokens)
    found = read(rest)
    pairs = of_run(found.data, found.run.world_size) if options.num_pairs is None else None
    if pairs is None:
        pairs = assumed(
            found.data,
            found.run.config,
            lengths,
            num_pairs=options.num_pairs,
            image_size=(options.image_size, options.image_size),
            world_size=found.run.world_size,
        )
    largest = reckon(found.run, pairs.largest)
    typical = largest if pairs.typical is pairs.largest else reckon(found.run, pairs.typical)
    available, said = _available(found, options.memory_gib)
    rate = _rate(options, found, pairs)
    made = Plan(found, pairs, largest, typical, rate, available, said, round(options.reserve_gib * GIB))
    if options.json:
        sys.stdout.write(json.dumps(as_json(made), indent=1) + "\n")
        return
    show(sections(made))
    said = verdict(largest.memory.peak, available, made.reserve)
    if largest.memory.peak > available - made.reserve:
        show([Section("What would change it", list(ways(made)))])
    sys.stdout.write(f"{said}\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="synthalign plan",
        description="Say what a run takes before it runs: what is trained, memory of a device by part, steps and time "
        "of an epoch. Takes whatever fit takes (synthalign fit --help), and loads no weights.",
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


def _rate(options: argparse.Namespace, found: Read, pairs: Pairs) -> Rate | None:
    if options.tflops is not None:
        return Rate(options.tflops * 1e12, "as given by --tflops")
    if options.calibrate < 1:
        return None
    cuda = torch.cuda.is_available() and str(found.trainer.accelerator) != "cpu"
    return calibrate(found.run, pairs.typical, torch.device("cuda" if cuda else "cpu"), options.calibrate)


def _available(found: Read, given: float | None) -> tuple[int, str]:
    if given is not None:
        return round(given * GIB), "as given by --memory-gib"
    if torch.cuda.is_available() and str(found.trainer.accelerator) != "cpu":
        return torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total // found.run.world_size, "this machine's memory: no GPU is here (--memory-gib says another)"


def sections(made: Plan) -> list[Section]:
    """Lay a plan out."""
    run, shares, memory = made.largest.run, made.largest.shares, made.largest.memory
    trained = shares.trained_numbers
    what = f"LoRA, r {run.lora.r}" if run.lora is not None else "the whole language model"
    weights = [
        Row("trained", f"{number(trained)}", what),
        Row("frozen", f"{number(made.largest.frozen)}", "quantised: " + run.quantization if run.quantization else ""),
        Row("saved adapter", size(shares.trained), "") if run.lora is not None else Row("saved", size(shares.trained)),
        Row("optimizer", made.largest.optimizer.name, f"{made.largest.optimizer.state:.2f} bytes a trained number"),
    ]
    batch = made.pairs.largest
    layout = type(run.layout).__name__ if made.largest.carried else "Rows: the layout asked for would get it wrong"
    pairs_a_step = made.pairs.num_pairs / max(1, made.steps)
    epoch = [
        Row("pairs", f"{made.pairs.num_pairs:,}", made.pairs.said),
        Row("optimizer steps", f"{made.steps:,}", f"{run.accumulate} batches each, {run.world_size} devices"),
        Row("pairs a step", f"{pairs_a_step:.1f}"),
        Row("tokens a step", f"{made.pairs.tokens / max(1, made.steps):,.0f}", f"layout {layout}"),
        Row("images a step", f"{_images(made):.1f}", "encoded once each"),
        Row("largest batch", f"{tokens_of(batch):,}", f"tokens, of {len(batch)} pairs: memory is reckoned for it"),
        Row("operations an epoch", number(made.operations)),
    ]
    if made.rate is not None and made.epoch_s is not None:
        epoch.append(Row("rate of a device", f"{number(made.rate.operations)}/s", made.rate.said))
        epoch.append(Row("time of an epoch", duration(made.epoch_s), "without evaluations, loading and waiting"))
    if made.largest.traffic.total:
        traffic = made.largest.traffic
        told = f"{size(traffic.gathered)} of weights, {size(traffic.reduced)} of gradients"
        epoch.append(Row("sent by each device a step", size(traffic.total), told))
    parts = [Row(name, size(value), remark) for name, value, remark in _parts(made.largest) if value]
    parts.append(Row("peak", size(memory.peak)))
    parts.append(Row("available", size(made.available), made.available_said))
    return [
        Section("What is trained", weights),
        Section("An epoch", epoch),
        Section(f"Memory of a device ({run.spread}, {run.world_size})", parts),
    ]


def _images(made: Plan) -> float:
    batch = made.pairs.typical
    return len(batch.image_ids) / len(batch) * made.pairs.num_pairs / max(1, made.steps)


def _parts(found: Reckoned) -> Iterator[tuple[str, int, str]]:
    run, memory = found.run, found.memory
    share = f"1/{run.world_size} of it" if run.spread == "sharded" else ""
    yield "language model", memory.language, ", ".join(filter(None, [run.quantization or "", share]))
    yield "vision tower, projector", memory.encoder, "whole"
    yield "trained weights", memory.trained, share
    yield "gradients", memory.gradients, share
    yield "optimizer state", memory.optimizer, share
    yield "frozen reference", memory.reference, "a second model"
    yield "buckets of DDP", memory.buckets, "gradients once more"
    yield "gathered by FSDP", memory.gathered, "embeddings, head, two layers; gradients of a layer"
    yield "pixels", memory.images, ""
    kept = "inputs of layers" if run.gradient_checkpointing else "without gradient checkpointing"
    yield "activations kept", memory.activations, kept
    yield "passing", memory.passing, "most besides, as logits or a layer's own"
    stays = max(0, memory.update - memory.gathered - memory.activations - memory.passing)
    yield "more while the optimizer steps", stays, ""


def ways(made: Plan) -> Iterator[Row]:
    """Try what makes a run smaller, each by itself and then together."""
    run, batch = made.largest.run, made.pairs.largest
    changes: list[tuple[str, dict[str, Any], Any]] = []
    if not run.gradient_checkpointing:
        changes.append(("model.init_args.gradient_checkpointing: true", {"gradient_checkpointing": True}, batch))
    if len(batch) > 1:
        from synthalign.dpo.carried import take

        one = take(batch, [max(range(len(batch)), key=lambda i: len(batch.prompts[i]["input_ids"]))])
        changes.append(("data.init_args.batch_size: 1", {}, one))
    if run.quantization is None and run.lora is not None and run.spread != "sharded":
        changes.append(("model.init_args.quantization: nf4", {"quantization": "nf4"}, batch))
    if run.lora is None:
        from synthalign.dpo.policy import LoRA

        changes.append(("lora in place of full fine-tuning", {"lora": LoRA(), "reference": "adapters_off"}, batch))
    everything: dict[str, Any] = {}
    smallest = batch
    for name, change, used in changes:
        yield _tried(made, name, reckon(replace(run, **change), used))
        everything |= change
        smallest = min(smallest, used, key=tokens_of)
    if len(changes) > 1:
        yield _tried(made, "all of these", reckon(replace(run, **everything), smallest))
    if run.quantization is None:
        for count in OTHER_DEVICES:
            if count > (run.world_size if run.spread == "sharded" else 1):
                other = spread_over(made.largest, "sharded", count)
                row = _tried(made, f"trainer.strategy: model_parallel on {count} devices", other)
                if row.remark == "fits" or count == OTHER_DEVICES[-1]:
                    yield row
                    break


def _tried(made: Plan, name: str, found: Reckoned) -> Row:
    fits = found.memory.peak <= made.available - made.reserve
    return Row(name, size(found.memory.peak), "fits" if fits else "does not fit")


def as_json(made: Plan) -> dict[str, Any]:
    """Return a plan for programs; sizes in bytes, times in seconds."""
    found, memory = made.largest, made.largest.memory
    left = made.available - made.reserve - memory.peak
    return {
        "trained": found.shares.trained_numbers,
        "frozen": found.frozen,
        "pairs": made.pairs.num_pairs,
        "pairs_said": made.pairs.said,
        "steps_per_epoch": made.steps,
        "tokens_per_epoch": made.pairs.tokens,
        "largest_batch_tokens": tokens_of(made.pairs.largest),
        "world_size": found.run.world_size,
        "spread": found.run.spread,
        "layout_carried": found.carried,
        "weights": plain(found.shares),
        "optimizer": plain(found.optimizer),
        "memory": {**plain(memory), "peak": memory.peak, "lasting": memory.lasting, "step": memory.step},
        "traffic_per_step": plain(found.traffic),
        "operations_per_epoch": made.operations,
        "operations_of_typical_batch": made.typical.step.operations,
        "rate": None if made.rate is None else plain(made.rate),
        "epoch_s": made.epoch_s,
        "available": made.available,
        "reserve": made.reserve,
        "fits": left >= 0,
        "left": left,
        "ways": [plain(row) for row in ways(made)] if left < 0 else [],
    }
