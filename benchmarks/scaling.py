"""Make the tables of docs/scaling.md: memory and time of LLaVA-1.5 of 7B and 13B, reckoned as `synthalign plan` does.

    python benchmarks/scaling.py --write docs/scaling.md

Nothing is loaded and nothing is trained. A step of one pair is taken on fake tensors by the engine's own code; sizes
of other tasks are products of published shapes.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers as hf

from synthalign.dpo.layouts import Tree
from synthalign.dpo.policy import LoRA
from synthalign.plan import Spread
from synthalign.plan.report import duration
from synthalign.planning.batches import Lengths, made_up
from synthalign.planning.run import Reckoned, Run, reckon, spread_over

GIB, GB, T = 2**30, 1e9, 1e12
PAIR = Lengths(question=80, chosen=200, rejected=150)
"""Of benchmarks/dpo_step.py's kind: a detailed description, and a shorter one."""

UTILISATION = 0.4
"""Share of the peak that a step reaches: an assumption."""

PEAKS = {"A100": 312 * T, "H100": 989 * T}
"""bf16 without sparsity, operations a second; NVIDIA's data sheets of A100 and H100 SXM."""

NVLINK, NETWORK = 450 * GB, 50 * GB
"""Bytes a second that an H100 sends: NVLink 4, one direction, and 400 Gbit/s for each GPU."""

H100_MEMORY, RESERVE = 80 * GIB, 2 * GIB
CARDS = (24, 48, 80, 141)
"""GiB of common GPUs."""

DEVICES = (1, 8, 64)
GLOBAL_PAIRS = 64
"""Pairs of an optimizer step, whatever the number of devices."""


def llava(hidden: int, inner: int, layers: int) -> Any:  # noqa: ANN401 - a configuration
    """Return LLaVA-1.5's configuration, as llava-hf/llava-1.5-7b-hf and -13b-hf have it."""
    return hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
        text_config=hf.LlamaConfig(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 128,
            vocab_size=32064,
        ),
        image_token_id=32000,
        image_seq_length=576,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


MODELS: dict[str, Callable[[], Any]] = {
    "7B": functools.partial(llava, 4096, 11008, 32),
    "13B": functools.partial(llava, 5120, 13824, 40),
}


class Way(NamedTuple):
    """A way to train."""

    name: str
    several: Spread  # how it is spread over several devices
    settings: dict[str, Any]


BF16: dict[str, Any] = {"dtype": "bfloat16", "lora": LoRA(r=128, alpha=256)}
FULL: dict[str, Any] = {"dtype": "float32", "lora": None, "reference": "cached", "autocast": torch.bfloat16}
WAYS = (
    Way("LoRA r 128, bf16", "ddp", BF16),
    Way("the same, checkpointing", "ddp", {**BF16, "gradient_checkpointing": True}),
    Way(
        "QLoRA r 64, nf4, checkpointing",
        "ddp",
        {"dtype": "bfloat16", "quantization": "nf4", "lora": LoRA(r=64), "gradient_checkpointing": True},
    ),
    Way("LoRA r 128, bf16, FSDP2, checkpointing", "sharded", {**BF16, "gradient_checkpointing": True}),
    Way("full, bf16-mixed, FSDP2, checkpointing", "sharded", {**FULL, "gradient_checkpointing": True}),
)


def counted(model: str, place: int) -> Reckoned:
    """Reckon a step of one pair on one device; settings that differ in how they are spread are counted once."""
    key = (model, repr(WAYS[place].settings))
    if key not in _COUNTED:
        config = MODELS[model]()
        _COUNTED[key] = reckon(Run(config=config, layout=Tree(), **WAYS[place].settings), made_up(config, [PAIR]))
    return _COUNTED[key]


_COUNTED: dict[tuple[str, str], Reckoned] = {}


def on(model: str, place: int, devices: int) -> Reckoned:
    """Spread it over devices."""
    found = counted(model, place)
    return found if devices == 1 else spread_over(found, WAYS[place].several, devices)


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Write Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def memory() -> str:
    """Peak memory of a device, GiB."""
    rows = []
    for model in MODELS:
        for place, way in enumerate(WAYS):
            peaks = [on(model, place, devices).memory.peak for devices in DEVICES]
            rows.append([model, way.name, *[f"{peak / GIB:.1f} ({_least(peak)})" for peak in peaks]])
    return table(["model", "way", *[f"{n} GPU{'s' * (n > 1)}, GiB" for n in DEVICES]], rows)


def _least(peak: int) -> str:
    """Name the smallest of common GPUs that a peak fits into."""
    return next((str(one) for one in CARDS if peak + RESERVE <= one * GIB), "none")


def parts() -> str:
    """The parts of it, on one device, and on eight where it is sharded."""
    rows = []
    for model in MODELS:
        for place, way in enumerate(WAYS):
            found = on(model, place, 8 if way.several == "sharded" else 1).memory
            weights = found.language + found.encoder + found.trained
            values = (weights, found.gradients, found.optimizer, found.gathered, found.activations, found.passing)
            rows.append([model, way.name, *[f"{value / GIB:.2f}" for value in values]])
    heads = ["model", "way", "weights", "gradients", "optimizer", "gathered", "activations", "passing"]
    return table(heads, rows)


def operations() -> str:
    """Operations of a pair, and time on one GPU."""
    rows = []
    for model in MODELS:
        for place, way in enumerate(WAYS):
            count = counted(model, place).step.operations
            total = sum(count.values())
            split = [f"{count.get(name, 0) / T:.1f}" for name in ("encoder", "reference", "policy", "backward")]
            seconds = [f"{total / (peak * UTILISATION):.2f}" for peak in PEAKS.values()]
            rows.append([model, way.name, *split, f"{total / T:.1f}", *seconds])
    heads = ["model", "way", "encoder", "reference", "policy", "backward", "together / T", *[f"{n} / s" for n in PEAKS]]
    return table(heads, rows)


def epochs() -> str:
    """Time of an epoch on H100s, computing alone, where they hold the run."""
    rows = []
    for model in MODELS:
        for place in (0, 2, 4):
            total = sum(counted(model, place).step.operations.values()) / (PEAKS["H100"] * UTILISATION)
            for pairs in (10_000, 100_000, 1_000_000):
                cells = [
                    duration(pairs * total / devices)
                    if on(model, place, devices).memory.peak + RESERVE <= H100_MEMORY
                    else "does not fit"
                    for devices in DEVICES
                ]
                rows.append([model, WAYS[place].name, f"{pairs:,}", *cells])
    return table(["model", "way", "pairs", *[f"{n} H100" for n in DEVICES]], rows)


def traffic() -> str:
    """Bytes that a device sends in an optimizer step of GLOBAL_PAIRS pairs, and how long that takes at least."""
    rows = []
    for model in MODELS:
        for place in (0, 2, 3, 4):
            for devices in (8, 64):
                found = counted(model, place)
                batches = GLOBAL_PAIRS // devices
                run = found.run.__class__(**{**vars(found.run), "accumulate": batches})
                sent = spread_over(found._replace(run=run), WAYS[place].several, devices).traffic
                computing = sum(found.step.operations.values()) * batches / (PEAKS["H100"] * UTILISATION)
                speed = NVLINK if devices == 8 else NETWORK
                rows.append(
                    [
                        model,
                        WAYS[place].name,
                        str(devices),
                        f"{sent.gathered / GB:.1f}",
                        f"{sent.reduced / GB:.2f}",
                        f"{sent.total / speed:.2f}",
                        f"{computing:.2f}",
                    ]
                )
    heads = ["model", "way", "GPUs", "weights / GB", "gradients / GB", "sending / s", "computing / s"]
    return table(heads, rows)


class Task(NamedTuple):
    """What is done for a prompt or an evaluation: operations by formula, and bytes of weights read while decoding."""

    name: str
    operations: float
    decoded: float  # bytes of weights read, a whole batch sharing one reading


def prefill(weights: float, tokens: float) -> float:
    """Two operations for each weight and token."""
    return 2 * weights * tokens


def synthesis() -> str:
    """Making pairs of the paper's kind: operations of a prompt, and hours of an H100 for 10K prompts."""
    bandwidth, batch = 3.35e12, 24  # H100 SXM's data sheet; answers written at once
    drawn = 4 * 28 * 2 * prefill(2.0e9, 4096 + 333)  # 4 images, 28 steps, with and without prompt
    answers = sum(prefill(one, 2880 + 50 + 256) for one in (7.2e9, 13.0e9, 6.7e9))
    read = sum(256 * 2 * one for one in (7.2e9, 13.0e9, 6.7e9)) / batch
    tasks = [
        Task("draw four images (SD3-medium, 1024 px, 28 steps, guided)", drawn, 0),
        Task("rank them (ImageReward)", 4 * prefill(0.45e9, 257), 0),
        Task("answer (LLaVA-1.6 Mistral-7B, Vicuna-13B, Vicuna-7B; 256 tokens)", answers, read),
        Task("score three answers (ArmoRM, 8B)", 3 * prefill(8.0e9, 450), 0),
    ]
    rows = []
    for task in tasks:
        seconds = task.operations / (PEAKS["H100"] * UTILISATION) + task.decoded / bandwidth
        rows.append(
            [task.name, f"{task.operations / T:.1f}", f"{task.decoded / GB:.1f}", f"{seconds * 1e4 / 3600:.1f}"]
        )
    return table(["stage", "operations of a prompt / T", "weights read / GB", "10K prompts / H100 h"], rows)


def evaluation() -> str:
    """Evaluations of the 7B policy on one H100, images and prompts shared as synthalign.vlm does."""
    bandwidth, weights = 3.35e12, 6.74e9
    pope = prefill(weights, 500 * 611 + 9000 * 25)
    mmhal = prefill(weights, 96 * (576 + 70 + 256))
    rows = []
    tasks = [("POPE: first tokens of 9000 answers, 500 images", pope, 0), ("MMHal: 96 answers", mmhal, 6 * 256)]
    for name, count, steps in tasks:
        seconds = count / (PEAKS["H100"] * UTILISATION) + steps * 2 * weights / bandwidth
        rows.append([name, f"{count / T:.0f}", f"{seconds:.0f}"])
    return table(["evaluation", "operations / T", "H100 / s"], rows)


TABLES = {one.__name__: one for one in (memory, parts, operations, epochs, traffic, synthesis, evaluation)}


def fill(path: Path, made: dict[str, str]) -> None:
    """Put tables between the marks of a file, which begin and end with their names."""
    text = path.read_text(encoding="utf-8")
    for name, one in made.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{path} has no one place for the table {name!r}, between {begin} and {end}")
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{one}\n{end}{rest.split(end)[1]}"
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Print the tables, or write them between the marks of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="file whose tables are replaced, between <!-- NAME: begin --> marks")
    options = parser.parse_args()
    made = {name: make() for name, make in TABLES.items()}
    if options.write is None:
        print("\n\n".join(f"{name}\n\n{text}" for name, text in made.items()))
        return
    fill(options.write, made)


if __name__ == "__main__":
    main()
