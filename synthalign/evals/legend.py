"""How a reader should take a metric: which way is better, as a percentage or not, and which ones to look at first."""

from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from synthalign.types import Eval


class Legend(NamedTuple):
    """What metrics mean whose keys fit a pattern.

    An evaluation lists its headline metrics in a class attribute ``legend``, in the order to show them. One without
    it is shown in full, plainly.
    """

    pattern: str
    """Shell pattern over the keys of the report, such as ``*/accuracy``."""

    better: Literal["high", "low"] | None = None
    """Which way is better; None where neither is, as for a length."""

    percent: bool = False
    """Whether the metric is a share in [0, 1] that reads best as a percentage."""

    headline: bool = True
    """Whether it belongs in a short table; what does not is for those who look closer, such as bars of each type."""


def headlines(evaluation: Eval, metrics: dict[str, float]) -> list[tuple[str, Legend]]:
    """Return the metrics to show, in order, each with its legend.

    Args:
        evaluation: What the metrics come from.
        metrics: Its report, keys without the evaluation's name.
    """
    chosen: dict[str, Legend] = {}
    for legend in getattr(evaluation, "legend", (Legend("*"),)):
        for key in metrics:
            if fnmatchcase(key, legend.pattern):
                chosen.setdefault(key, legend)
    return [(key, legend) for key, legend in chosen.items() if legend.headline]


def legend_of(evaluation: Eval, metrics: dict[str, float]) -> dict[str, Legend]:
    """Return the legend of every metric; one that no pattern fits is a plain number, and no headline."""
    patterns = getattr(evaluation, "legend", (Legend("*"),))
    return {
        key: next((one for one in patterns if fnmatchcase(key, one.pattern)), Legend(key, headline=False))
        for key in metrics
    }


def count_of(key: str, metrics: dict[str, float]) -> float | None:
    """Return how many questions a metric stands on: the nearest ``n``, of its own group or of the whole report."""
    group = key.rpartition("/")[0]
    return metrics.get(f"{group}/n", metrics.get("n"))
