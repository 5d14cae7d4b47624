"""Guards of a run: one stops it where numbers have lost their meaning, one warns where it goes astray. B pairs."""

import json
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthalign.store import write_atomically
from synthalign.types import PairLogps


def refuse_nonfinite(
    loss: Tensor, ids: Sequence[str], policy: PairLogps, reference: PairLogps, *, step: int, folder: Path | None
) -> None:
    """Stop the run where a loss is NaN or infinite, with the batch saved as ``nonfinite.json``.

    Args:
        loss: Of the B pairs, not reduced.
        ids: Of the pairs.
        policy: Their log-probs under the policy.
        reference: Their log-probs under the reference.
        step: Optimizer steps taken so far.
        folder: The run's; None: nothing is saved.

    Raises:
        FloatingPointError: A loss is NaN or infinite.
    """
    finite = torch.isfinite(loss.detach())
    if finite.all():  # the only wait for the device
        return
    columns = {"loss": loss, **_sides("policy", policy), **_sides("reference", reference)}
    values = [[_number(value) for value in column.detach().tolist()] for column in columns.values()]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
    bad = [{"id": pair_id, **row} for pair_id, row, fine in zip(ids, rows, finite.tolist(), strict=True) if not fine]
    message = f"the loss is no finite number at pairs {', '.join(row['id'] for row in bad)}"
    if folder is None:
        raise FloatingPointError(message)
    path = folder / "nonfinite.json"
    content = json.dumps({"step": step, "ids": list(ids), "bad": bad}, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        write_atomically(path, (content + "\n").encode())
    except RuntimeError as error:  # a full disk must not hide what happened
        raise FloatingPointError(f"{message}; the batch could not be saved: {error}") from error
    raise FloatingPointError(f"{message}; the batch is in {path}")


def _sides(name: str, logps: PairLogps) -> dict[str, Tensor]:
    return {f"{name}_{side}": column for side, column in logps._asdict().items()}


def _number(value: float) -> Any:  # noqa: ANN401
    """Return what JSON can carry: it knows no NaN."""
    return value if math.isfinite(value) else str(value)


class FallingChosen:
    """Warns when training makes the chosen responses themselves much less likely.

    A preference loss asks for a margin only; it is content if both responses' log-probs fall, the rejected one's
    faster. Watched is the policy's chosen log-prob minus the reference's, which is what it has moved from where it was
    at the start, on the same pairs.
    Source: Pal et al. 2024 (arXiv 2402.13228), section 3, who describe the failure.

    Args:
        margin_nats: How far below its starting value the mean over pairs may fall, nats per response, > 0.
        window: Optimizer steps that the mean is taken over.
    """

    def __init__(self, *, margin_nats: float = 10.0, window: int = 20) -> None:
        if not margin_nats > 0 or window < 1:
            raise ValueError(f"margin_nats must be > 0 and window >= 1, got {margin_nats} and {window}")
        self.margin_nats, self.window = margin_nats, window
        self._last: deque[float] = deque(maxlen=window)
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on, in plain types."""
        return {"last": list(self._last), "warned": self._warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._last.extend(float(value) for value in state["last"])
        self._warned = bool(state["warned"])

    def __call__(self, change: float, step: int) -> str | None:
        """Take in one optimizer step.

        Args:
            change: Mean of policy.chosen - reference.chosen over all pairs of the step, on all ranks, nats.
            step: Number of the step.

        Returns:
            The warning, once, when there is one.
        """
        self._last.append(change)
        mean = sum(self._last) / len(self._last)
        if self._warned or len(self._last) < self.window or not mean < -self.margin_nats:
            return None
        self._warned = True
        return (
            f"step {step}: the chosen responses' mean log-prob has fallen {-mean:.1f} nats below its starting value "
            f"(over the last {self.window} steps; the margin is {self.margin_nats:g}): the policy is unlearning what "
            "it should prefer; set the loss's nll_coef, or lower the learning rate"
        )
