"""An evaluation's tally as a torchmetrics metric, so that several ranks come right by themselves."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from synthalign.types import Eval, Question


class Tally(Metric):
    """The sum of an evaluation's tallies over calls and ranks; computes to its report.

    Each rank updates with its own share of the questions: any share, of any size, none included. A rank without
    questions must still update, with none.

    Args:
        evaluation: What to tally.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor

    def __init__(self, evaluation: Eval) -> None:
        super().__init__()
        self.evaluation = evaluation
        self.add_state("total", default=evaluation.tally([], []), dist_reduce_fx="sum")

    def update(self, questions: Sequence[Question], verdicts: Sequence[dict[str, Any]]) -> None:
        """Add a share of the questions."""
        self.total += self.evaluation.tally(questions, verdicts).to(self.total.device)

    def compute(self) -> dict[str, float]:
        """Return the report of everything added on any rank."""
        return self.evaluation.report(self.total)
