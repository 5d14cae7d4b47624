"""Spoil configs, pair files, images, adapters and checkpoints at random, and count how the commands end.

    python benchmarks/malformed.py [--examples 500] [--seed 0] [--kinds config image] [--show]

Each example is a copy of a small valid world with one input spoilt, and one command on it, all in one process. It must
end in one line and exit status 2, or in a drop that is counted and named, or as if nothing were wrong because nothing
is; every file that was there must be there afterwards, unchanged, and what is new must be whole. Anything else is a
fault: it is printed, and the exit status is 1.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT / "tests")  # its generator is there, under this file's own name

# Read by the libraries when they are imported.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def main() -> None:
    """Run the examples and print the table."""
    with tempfile.TemporaryDirectory(prefix="malformed-") as folder:
        os.environ["HF_HOME"] = folder
        sys.exit(spoil(parse(), Path(folder)))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=500, help="how many, shared out over the kinds")
    parser.add_argument("--seed", type=int, default=0, help="of the generator")
    parser.add_argument("--kinds", nargs="+", help="which kinds of input (all five)")
    parser.add_argument("--show", action="store_true", help="print how every example ended")
    return parser.parse_args()


def spoil(options: argparse.Namespace, folder: Path) -> int:
    """Run the examples in a folder; return the exit status."""
    from malformed.examples import KINDS, run
    from malformed.judged import ENDINGS, FAULT
    from malformed.world import build

    world, kinds = build(folder), options.kinds or list(KINDS)
    lines, faults = [f"| input | {' | '.join(ENDINGS)} |", "|---|" + "---|" * len(ENDINGS)], 0
    for place, kind in enumerate(kinds):
        count = options.examples // len(kinds) + (place < options.examples % len(kinds))
        found = run(kind, world, count, options.seed)
        for done, argv, outcome in found:
            if options.show or outcome.ending == FAULT:
                print(f"{kind}: {done}\n  {' '.join(argv)}\n  {outcome.ending}: {outcome.said.strip()}")
        ended = Counter(example.outcome.ending for example in found)
        faults += ended[FAULT]
        lines.append(f"| {kind} | {' | '.join(str(ended[ending]) for ending in ENDINGS)} |")
    print("\n".join(lines))
    return 1 if faults else 0


if __name__ == "__main__":
    main()
