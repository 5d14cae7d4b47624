"""Time one DPO step of a vision-language model, and the memory it adds, beside TRL's and beside what is possible.

    python benchmarks/dpo_step.py [--sizes small] [--dtype both] [--rounds 7] [--json runs/dpo_step.json]

Needs the `bench` extra. Steps are taken in turn in one process, on the same weights, tokens and pixels: TRL's real
`DPOTrainer.training_step`, full fp32 logits as LLaMA-Factory computes them, and our own with one part after another
switched on; then four pairs about one image. Before anything is timed, each step's loss and gradients are compared with
TRL's. Peak memory is taken in fp32, each step in a process of its own.

On a CPU one thread computes, and the default sizes are those of a small random LLaVA. On CUDA they are LLaVA-1.5-7B's;
Qwen2.5-VL-7B's are the other. `tiny` is there to see whether all of it runs.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Read by the libraries when they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from ladder import contest, peers, report, scene  # type: ignore[import-not-found]

LIBRARIES = ("torch", "transformers", "peft", "trl")


def main() -> None:
    """Measure, print the tables, and write the figures down."""
    options = parse()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    peers.quiet()
    size = scene.SIZES[options.sizes]
    if options.memory_of:
        print(json.dumps(contest.memory_of(options.memory_of, size, device)))
        return
    found: dict[str, Any] = {"sizes": options.sizes, "machine": machine(device), "memory": [], "times": []}
    if "memory" in options.measure:  # first, while this process holds nothing of the device's memory
        found["memory"] = contest.in_memory(lambda name: memory_in_fresh_process(name, options))
    dtypes = ("fp32", "bf16") if options.dtype == "both" else (options.dtype,)
    for dtype in dtypes if "time" in options.measure else ():
        for one in contest.CONTESTS:
            measured = contest.times(one, size, dtype, options.rounds, device)
            found["times"].append({"title": one.title, "dtype": dtype, "num_rounds": options.rounds, **measured})
    report.show(found)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"The figures are in {options.json}")


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    sizes = "llava-1.5-7b" if cuda else "small"
    parser.add_argument("--sizes", choices=tuple(scene.SIZES), default=sizes, help=f"of model and batch; here {sizes}")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "both"), default="both", help="of weights, when timed")
    parser.add_argument("--rounds", type=int, default=7, help="in which each step is timed once")
    parser.add_argument("--measure", nargs="+", choices=("time", "memory"), default=["time", "memory"])
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--json", type=Path, help="file for all figures, every round's included")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # the task of a fresh process
    return parser.parse_args()


def memory_in_fresh_process(name: str, options: argparse.Namespace) -> float | str:
    """Return the memory that a step adds, MiB, or the last line of what went wrong."""
    command = [sys.executable, __file__, "--sizes", options.sizes, "--device", options.device, "--memory-of", name]
    # A fixed threshold: large tensors go back to the system as they are freed, so that a peak is what was alive.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no output"])[-1]
    return float(json.loads(done.stdout.splitlines()[-1]))


def machine(device: torch.device) -> dict[str, Any]:
    """Say what this was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    versions = {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}}
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions}


def processor() -> str:
    """Name the CPU, and say whether it multiplies bf16 by itself: where it does not, bf16 is slower than fp32."""
    lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    facts = {key.strip(): value.strip() for key, value in lines}
    native = {"amx_bf16", "avx512_bf16"} & set(facts.get("flags", "").split())
    return f"{facts.get('model name', platform.machine())} ({', '.join(sorted(native)) or 'no bf16 of its own'})"


if __name__ == "__main__":
    main()
