"""The door: ``synthalign fit | validate | test | synthesize | world``. Opens each room only when it is asked for."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

USAGE = """\
usage: synthalign COMMAND [options]

  fit         make whatever pairs are missing, then train on them, with evaluations on the way
  validate    figures of the policy on held-out pairs, and the evaluations
  test        evaluate the policy, and the base it comes from
  synthesize  make the pairs, and stop
  world       write the offline world: prompts and benchmarks that need no download

synthalign COMMAND --help documents every option of a command. Options come from --config FILE (several are merged,
the later winning) and from flags; --print_config shows what they add up to.
"""

DEBUG = "SYNTHALIGN_DEBUG"
"""Environment variable: set, a user's mistake is shown with its traceback."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake is one line on stderr and exit status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands = {"world": _world} | dict.fromkeys(("fit", "validate", "test", "synthesize"), _train)
    if not args or args[0] in {"-h", "--help"}:
        sys.stdout.write(USAGE)
        return
    if args[0] not in commands:
        fail(f"no command {args[0]!r}: there are {', '.join(sorted(commands))}")
    _in_one_line(commands[args[0]], args)


def fail(message: str) -> NoReturn:
    """Say what is wrong in one line, and leave."""
    sys.stderr.write(f"synthalign: error: {' '.join(message.split())}\n")
    raise SystemExit(2)


def _in_one_line(command: Callable[[list[str]], None], args: list[str]) -> None:
    try:
        command(args)
    except (ValueError, FloatingPointError, RuntimeError) as error:
        if os.environ.get(DEBUG) or not _is_ours(error):
            raise
        fail(str(error))


def _is_ours(error: BaseException) -> bool:
    """Whether a ``raise`` of this package made the error: on purpose, and with words for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    if not (frames[-1].line or "").startswith("raise "):
        return False
    house = Path(__file__).resolve().parents[1]
    rooms = ("synthalign", "datamodules", "modules", "callbacks")
    return any(Path(frames[-1].filename).is_relative_to(house / room) for room in rooms)


def _train(args: list[str]) -> None:
    from synthalign.training import run

    run(args)


def _world(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="synthalign world",
        description="Write the offline world: prompts to draw, and benchmarks with their truth.",
    )
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts; the benchmarks are always the same")
    parser.add_argument("--num-prompts", type=int, default=500, help="prompts to write (500)")
    parser.add_argument("--num-scenes", type=int, default=400, help="held-out test scenes (400)")
    options = parser.parse_args(args[1:])

    from synthalign.world.data import write

    write(options.out, seed=options.seed, num_prompts=options.num_prompts, num_scenes=options.num_scenes)
    sys.stdout.write(f"The offline world is in {options.out}: prompts.jsonl, objects.txt, validation/, heldout/\n")
