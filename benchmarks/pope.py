"""Time the answering of many short questions about few images, as POPE asks them, beside what others do.

    python benchmarks/pope.py [--sizes small] [--dtype fp32] [--rounds 3] [--json runs/pope.json]

Contenders take turns in one process, on the same weights, images and questions: 2 images x 18 questions, 3 tokens each.
Five of them are made of Hugging Face's own calls, from the loops of public evaluators to a prefix whose cache is copied
to every question; ours is `synthalign.vlm.reply`, as the module in training calls it at every evaluation: as it is, a
split at a time, with image features kept from an earlier evaluation, and for the first token alone, which is all where
a reply is one token. Before anything is timed, each one's answers are compared with the plain forward, word by word and
in their logits.

On a CPU one thread computes, and the default model is a small random LLaVA; on CUDA it has LLaVA-1.5-7B's sizes.
`tiny` is there to see whether all of it runs.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

# Read by the libraries when they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers as hf
from generation import scene  # type: ignore[import-not-found]
from generation.contest import keep_memory  # type: ignore[import-not-found]
from ladder.scene import DTYPES  # type: ignore[import-not-found]
from polling import contest, report  # type: ignore[import-not-found]
from synthesis import machine  # type: ignore[import-not-found]


def main() -> None:
    """Compare, measure, print the tables, and write the figures down."""
    options = parse()
    device = torch.device(options.device)
    hf.logging.set_verbosity_error()
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_memory()
    asked = contest.ASKED[options.sizes]
    found: dict[str, Any] = {
        "sizes": options.sizes,
        "asked": f"{asked.num_images} images x {asked.num_questions} questions, {asked.new_tokens} tokens",
        "machine": machine(device),
        "dtype": options.dtype,
        "num_rounds": options.rounds,
        "loop_step": options.loop_step,
    }
    with tempfile.TemporaryDirectory() as folder:
        stage = scene.scene(options.sizes, dtype=DTYPES[options.dtype], device=device, folder=Path(folder), asked=asked)
        contenders = contest.contenders()
        contenders[contest.OURS].answer(stage.of(slice(0, 2)))  # what is tried at a model's first call is not timed
        found["greedy"] = contest.compare(stage, options.dtype, contenders)
        found |= contest.times(stage, options.dtype, options.rounds, options.loop_step, contenders)
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
    parser.add_argument("--sizes", choices=tuple(contest.ASKED), default=sizes, help=f"of model and task; here {sizes}")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default=dtype, help=f"of weights; here {dtype}")
    parser.add_argument("--rounds", type=int, default=3, help="in which each contender is timed once")
    parser.add_argument("--loop-step", type=int, default=1, help="the loop answers one row in so many, its time scaled")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--json", type=Path, help="file for all figures, every round's included")
    return parser.parse_args()


if __name__ == "__main__":
    main()
