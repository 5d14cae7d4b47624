"""Refuses a monitor of a figure that no evaluation has, which Lightning would miss an epoch later."""

from collections.abc import Sequence
from difflib import get_close_matches

from lightning.pytorch import Trainer


def check_monitors(trainer: Trainer, evals: Sequence[str]) -> None:
    """Compare the monitors of the trainer's callbacks with the figures that it has.

    Args:
        trainer: In a fit, after an evaluation. Monitors of other figures, such as of a loss, are not looked at.
        evals: Names of the evaluations that have all their figures by now.

    Raises:
        ValueError: A callback monitors a figure of an evaluation that has no such figure.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined] # a Trainer has it
        monitor = getattr(callback, "monitor", None)
        if not isinstance(monitor, str) or monitor in trainer.callback_metrics:
            continue
        of = [name for name in evals if monitor.startswith((f"{name}/", f"base/{name}/"))]
        if not of:
            continue
        figures = [key for key in trainer.callback_metrics if key.startswith(f"{of[0]}/")]
        near = get_close_matches(monitor, figures, cutoff=0.0)
        said = f"the nearest are {', '.join(near)}" if near else f"{of[0]} has none, since nobody judges its answers"
        raise ValueError(f"{type(callback).__name__}: monitor {monitor!r} is not among the figures; {said}")
