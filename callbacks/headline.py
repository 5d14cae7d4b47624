"""One line for the log: what an evaluation came to, and what changed since the first."""

from collections.abc import Sequence

from synthalign.evals.legend import Legend, headlines
from synthalign.evals.results import Metrics
from synthalign.types import Eval

WHOLE = ("", "mean")
"""Groups that stand for all questions of an evaluation."""


def headline(evals: Sequence[Eval], metrics: Metrics, first: Metrics) -> str:
    """Write the headline metrics in one line, such as ``pope/mean accuracy 85.3 (+1.2), f1 84.1 (+0.8); mmhal …``.

    Of an evaluation's headlines those are shown that can get better and stand for all its questions, if there are any.

    Args:
        evals: What was sat.
        metrics: Keys with the evaluation's name in front; shares in [0, 1] are shown in percent.
        first: The metrics of the first evaluation, for the changes in parentheses; empty where this is the first.
    """
    groups: dict[str, list[str]] = {}
    for evaluation in evals:
        prefix = f"{evaluation.name}/"
        own = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
        shown = headlines(evaluation, own)
        for key, legend in [one for one in shown if _tells(*one)] or shown:
            group, _, name = (prefix + key).rpartition("/")
            scale, digits = (100, 1) if legend.percent else (1, 2)
            text = f"{name} {scale * own[key]:.{digits}f}"
            if prefix + key in first:
                text += f" ({scale * (own[key] - first[prefix + key]):+.{digits}f})"
            groups.setdefault(group, []).append(text)
    return "; ".join(f"{group} {', '.join(texts)}" for group, texts in groups.items())


def _tells(key: str, legend: Legend) -> bool:
    group, _, name = key.rpartition("/")
    return legend.better is not None and group in WHOLE and not name.startswith("n_")
