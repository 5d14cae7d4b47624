"""One evaluation on all ranks: asked, saved, judged, and counted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from tqdm import tqdm

from synthalign.evals.ask import ask, distinct, share
from synthalign.evals.samples import merge_parts, sample_rows, write_part
from synthalign.evals.tally import Tally
from synthalign.types import Eval, Policy, Question, Reply

JUDGE_FAILURES = (RuntimeError, OSError, ValueError, ArithmeticError)
"""A server that is gone, a key that has expired, memory that a judge lacks, a rating that is none, logits of NaN."""


class Report(NamedTuple):
    """What came of an evaluation."""

    metrics: dict[str, float]
    """Keys without the evaluation's name."""

    failure: str | None = None
    """Why the answers were not judged; there are no metrics then."""


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """A policy sits evaluations; every rank makes one of these and calls it for the same evaluations.

    Args:
        trainer: Whose ranks share the questions, under whose precision they are answered.
        policy: The module in training, in eval mode; its modes and its gradients are the caller's affair.
        folder: Where the samples go. All ranks must see it.
    """

    trainer: Trainer
    policy: LightningModule
    folder: Path

    def __call__(self, evaluation: Eval) -> Report:
        """Sit one evaluation, on all ranks together.

        The answers are on disk before anybody judges them, with ``correct: null``; then the verdicts join them.
        """
        questions = evaluation.questions()
        asked, replies = self._answers(evaluation, questions)
        self._save(evaluation, asked, replies, [{"correct": None}] * len(asked))
        verdicts, failure = self._verdicts(evaluation, asked, replies)
        if failure is not None:
            return Report({}, failure)
        self._save(evaluation, asked, replies, verdicts)
        tally = Tally(evaluation)
        if self.trainer.world_size > 1:
            tally.to(self.policy.device)  # where the ranks can talk to each other
        tally.update(asked, verdicts)
        return Report(tally.compute())

    def _answers(self, evaluation: Eval, questions: Sequence[Question]) -> tuple[list[Question], list[Reply]]:
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        hidden = not self.trainer.is_global_zero or self.trainer.progress_bar_callback is None
        mine, all_ranks = sum(map(distinct, share(questions, rank, world_size))), distinct(questions)
        title = f"{evaluation.name} ({self.folder.name})"
        # a step of Lightning's runs under the trainer's precision; whatever a callback runs does not
        with (
            _alone_on_the_terminal(self.trainer),
            tqdm(desc=title, total=all_ranks, unit="question", disable=hidden, leave=False) as bar,
            self.trainer.precision_plugin.forward_context(),
        ):
            return ask(
                cast(Policy, self.policy),
                questions,
                max_new_tokens=evaluation.max_new_tokens,
                rank=rank,
                world_size=world_size,
                lockstep=isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy),
                progress=_of_all_ranks(bar, mine, all_ranks),
            )

    def _save(
        self, evaluation: Eval, asked: list[Question], replies: list[Reply], verdicts: list[dict[str, Any]]
    ) -> None:
        write_part(self.folder, evaluation.name, self.trainer.global_rank, sample_rows(asked, replies, verdicts))
        self.trainer.strategy.barrier(f"parts of {evaluation.name}")
        if self.trainer.is_global_zero:
            order = [question.id for question in evaluation.questions()]
            merge_parts(self.folder, evaluation.name, self.trainer.world_size, order)
        self.trainer.strategy.barrier(f"samples of {evaluation.name}")  # before the next parts of the same name

    def _verdicts(
        self, evaluation: Eval, asked: list[Question], replies: list[Reply]
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return the verdicts on this rank's share, and why not, where any rank got none."""
        verdicts: list[dict[str, Any]] = []
        failure = ""
        try:
            verdicts = evaluation.verdicts(asked, replies)
        except JUDGE_FAILURES as error:
            failure = " ".join(str(error).split()) or type(error).__name__
        strategy = self.trainer.strategy
        if strategy.reduce_boolean_decision(not failure, all=True):
            return verdicts, None
        failures = [strategy.broadcast(failure, src=rank) for rank in range(self.trainer.world_size)]
        return [], next(filter(None, failures))


@contextmanager
def _alone_on_the_terminal(trainer: Trainer) -> Iterator[None]:
    """Stop the live display of Lightning's Rich bar meanwhile, which swallows every other bar."""
    display: Any = getattr(trainer.progress_bar_callback, "progress", None)
    if display is None or not display.live.is_started:
        yield
        return
    transient, display.live.transient = display.live.transient, True  # or it leaves its last lines behind
    display.stop()
    display.live.transient = transient
    try:
        yield
    finally:
        display.start()


def _of_all_ranks(bar: Any, mine: int, all_ranks: int) -> Callable[[int], None]:  # noqa: ANN401 - tqdm has no types
    """Move a bar as if the other ranks were as far as this one."""
    asked = 0

    def progress(number: int) -> None:
        nonlocal asked
        asked += number
        bar.update(asked * all_ranks // max(mine, 1) - bar.n)

    return progress
