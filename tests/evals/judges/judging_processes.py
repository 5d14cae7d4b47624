"""Processes that judge at once, or are killed while they judge: forked from one, since importing takes seconds.

Run with a folder for judgements, a file that takes down what a judge is asked, and ``kill`` or ``together``.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from synthalign.evals.judges.kept import KeptJudgements
from synthalign.types import Judgement

FOLDER, LOG = Path(sys.argv[1]), Path(sys.argv[2])
TWO_AT_ONCE = 2


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """A judge for whom longer is better, and who says to a file what it is asked."""

    def about(self) -> dict[str, str]:
        return {"judge": "length", "judge_revision": "1", "judge_prompt": "none"}

    def judge(
        self,
        contents: Sequence[Sequence[str]],
        questions: Sequence[str],
        references: Sequence[str],
        answers: Sequence[str],
    ) -> list[Judgement]:
        with LOG.open("a") as log:
            log.write("".join(f"{answer}\n" for answer in answers))
        if answers[0] == until[0]:
            wait_for(until[1])
        return [Judgement(len(answer), "", True) for answer in answers]

    def release(self) -> None:
        pass


until = ("", "")  # at this answer the judge waits for that line in its file


def wait_for(line: str) -> None:
    while not LOG.exists() or line not in LOG.read_text():
        time.sleep(0.005)


def judge(answers: str) -> None:
    n = len(answers.split(","))
    kept = KeptJudgements(inner=Lengths(), folder=FOLDER, rows_at_once=TWO_AT_ONCE)
    rated = kept.judge([[]] * n, ["?"] * n, ["!"] * n, answers.split(","))
    assert [one.score for one in rated] == [len(answer) for answer in answers.split(",")]


def forked(work: Callable[[], None]) -> int:
    """Start a process; gives its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def ended_well(child: int) -> bool:
    return os.waitpid(child, 0)[1] == 0


def kill() -> None:
    global until
    until = ("ccc", "never")
    child = forked(lambda: judge("a,bb,ccc,dddd"))
    wait_for("dddd\n")
    os.kill(child, signal.SIGKILL)
    assert not ended_well(child)
    until = ("", "")
    assert ended_well(forked(lambda: judge("a,bb,ccc,dddd")))  # the lock of the dead holds nobody up


def together() -> None:
    global until
    until = ("a", "bb\n")
    first = forked(lambda: judge("a"))
    wait_for("a\n")
    second = forked(lambda: judge("a,bb"))  # finds the first one at work on a, and goes on with bb
    assert ended_well(first) and ended_well(second)
    until = ("", "")
    orders = ["ccc,dddd,eeeee,a", "eeeee,dddd,ccc,bb", "dddd,a,ccc,bb,eeeee"]
    children = [forked(partial(judge, order)) for order in orders]
    assert all([ended_well(child) for child in children])


{"kill": kill, "together": together}[sys.argv[3]]()
