"""The door: ``synthalign COMMAND``. Opens each room only when it is asked for."""

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
  plan        say what a run will take before it runs: memory by part, steps, time, and what will not fit
  convert     write a set of pairs in another tool's format, and push it to the hub if asked
  prompts     write the prompts to draw, by a language model of yours, or take the starter set
  gallery     show what a run made: one HTML file with images, questions, pairs, drops and their reasons
  report      show what became of a run's model: one HTML file with curves, bars, and the answers that changed
  export      write a run's adapter, or the model merged with it, for other tools, with a model card
  score       figures of answers that were saved before: POPE, MMHal-Bench, CHAIR, AMBER, MME
  questions   write a benchmark's questions or truth for images of yours: POPE's, CHAIR's
  world       write the offline world: prompts and benchmarks that need no download

synthalign COMMAND --help documents every option of a command. Options come from --config FILE (several are merged,
the later winning) and from flags; --print_config shows what they add up to.
"""

LONGEST_LINE = 500
"""Characters of the longest message; of a longer one the middle is left out."""

DEBUG = "SYNTHALIGN_DEBUG"
"""Environment variable: set, a user's mistake is shown with its traceback."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake is one line on stderr and exit status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands = (
        dict.fromkeys(("fit", "validate", "test", "synthesize"), _train)
        | dict.fromkeys(("convert", "export", "gallery", "prompts", "questions", "report", "world"), _plain)
        | {"plan": _plan, "score": _score}
    )
    if not args or args[0] in {"-h", "--help"}:
        sys.stdout.write(USAGE)
        return
    if args[0] not in commands:
        fail(f"no command {args[0]!r}: there are {', '.join(sorted(commands))}")
    _in_one_line(commands[args[0]], args)


def fail(message: str) -> NoReturn:
    """Say what is wrong in one line, and leave."""
    line = " ".join(message.split())
    if len(line) > LONGEST_LINE:  # it quotes what it found, of whatever length
        line = f"{line[: LONGEST_LINE - 120]} … {line[-117:]}"
    sys.stderr.write(f"synthalign: error: {line}\n")
    raise SystemExit(2)


def _in_one_line(command: Callable[[list[str]], None], args: list[str]) -> None:
    try:
        command(args)
    except KeyboardInterrupt:
        sys.stderr.write(
            "\nsynthalign: stopped; what had landed on disk stays, and the same command goes on from there; "
            "training itself with --ckpt_path FILE, a checkpoint of the run\n"
        )
        raise SystemExit(130) from None
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

    try:
        run(args)
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):  # Lightning's trainer makes an exit of it
            raise KeyboardInterrupt from None
        raise


def _plain(args: list[str]) -> None:
    from synthalign import commands

    getattr(commands, args[0])(args)


def _plan(args: list[str]) -> None:
    from synthalign.planning import command

    command.plan(args)


def _score(args: list[str]) -> None:
    from synthalign.scoring import run

    run(args)
