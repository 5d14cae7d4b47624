"""Time the answering of questions about images, beside one-at-a-time loops and beside what is possible.

    python benchmarks/synthesis.py [--sizes small] [--dtype fp32] [--rounds 3] [--json runs/synthesis.json]

Contenders take turns in one process, on the same weights, images and questions: 2 images x 4 questions x 6 samples of
64 tokens, no answer ending before. Four of them are made of Hugging Face's own calls, from the reference's loop to a
prefix whose cache is copied to every row; ours is `synthalign.vlm.reply`, as a responder calls it. Before anything is
timed, each one's greedy answers are compared with the plain forward, word by word and in their logits; then what each
of them samples is tested against the model's distribution.

On a CPU one thread computes, and the default model is a small random LLaVA; on CUDA it has LLaVA-1.5-7B's sizes.
`tiny` is there to see whether all of it runs.
"""

import argparse
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Read by the libraries when they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers as hf
from dpo_step import processor  # type: ignore[import-not-found]
from generation import contest, report, scene  # type: ignore[import-not-found]
from ladder.scene import DTYPES  # type: ignore[import-not-found]

LIBRARIES = ("torch", "transformers")


def main() -> None:
    """Compare, measure, print the tables, and write the figures down."""
    options = parse()
    device = torch.device(options.device)
    hf.logging.set_verbosity_error()
    if device.type == "cpu":
        torch.set_num_threads(1)
        contest.keep_memory()
    asked = scene.ASKED[options.sizes]
    found: dict[str, Any] = {
        "sizes": options.sizes,
        "asked": f"{asked.num_images} images x {asked.num_questions} questions x {asked.num_samples} samples of "
        f"{asked.new_tokens} tokens",
        "machine": machine(device),
        "dtype": options.dtype,
        "num_rounds": options.rounds,
        "num_draws": options.draws,
        "loop_step": options.loop_step,
    }
    with tempfile.TemporaryDirectory() as folder:
        stage = scene.scene(options.sizes, dtype=DTYPES[options.dtype], device=device, folder=Path(folder))
        # In this order: what a responder tries at a model's first call is not to be taken for its logits.
        found["first_words"] = contest.first_words(stage, options.draws)
        found["greedy"] = contest.compare(stage, options.dtype)
        found |= contest.times(stage, options.dtype, options.rounds, options.loop_step)
    report.show(found)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"The figures are in {options.json}")
    print(contest.verdict(found["rows"]))


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    sizes, dtype = ("llava-1.5-7b", "bf16") if cuda else ("small", "fp32")
    parser.add_argument("--sizes", choices=tuple(scene.ASKED), default=sizes, help=f"of model and task; here {sizes}")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default=dtype, help=f"of weights; here {dtype}")
    parser.add_argument("--rounds", type=int, default=3, help="in which each contender is timed once")
    parser.add_argument("--draws", type=int, default=1024, help="of a first word, for the test of our sampler")
    parser.add_argument("--loop-step", type=int, default=1, help="the loop answers every so manyeth row, time scaled")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--json", type=Path, help="file for all figures, every round's included")
    return parser.parse_args()


def machine(device: torch.device) -> dict[str, Any]:
    """Say what this was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    versions = {library: version(library) for library in LIBRARIES}
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions}


if __name__ == "__main__":
    main()
