"""What the evaluations of a run came to: its history, results.json, and the table in the terminal."""

import dataclasses
import inspect
import json
import math
import sys
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Context, Decimal
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from synthalign.evals.ask import distinct
from synthalign.evals.legend import Legend, count_of, headlines, legend_of
from synthalign.store import write_atomically
from synthalign.types import Eval

Metrics = dict[str, float]
"""Keys with the evaluation's name in front, such as ``pope/random/accuracy``."""

RESULTS = "results.json"
"""In a run's folder, from its normal end on."""

SO_FAR = "unfinished.json"
"""In a run's folder, of the same form, until then."""

ALL_DIGITS = Context(prec=400)
"""Enough for the largest of floats."""

ARROWS = {"high": " ↑", "low": " ↓", None: ""}
"""Put after a metric's name: which way is better."""


class Results(NamedTuple):
    """What stands in results.json."""

    stage: str
    """``fit``, ``validate`` or ``test``."""

    before: Metrics | None
    """The base model; None where it was not evaluated."""

    after: Metrics
    """The aligned model."""

    history: list[dict[str, Any]]
    """Of a fit: ``epoch`` (completed ones), ``step``, ``samples`` (a folder) and ``metrics`` of every evaluation."""

    policy: str | None = None
    """Whose figures these are: the base model's folder or id, as the run was given it; None where nobody said."""

    adapter: str | None = None
    """What was laid over it before the run began."""

    seed: int | None = None
    """Of the run."""


def write_results(path: Path, results: Results, evals: Sequence[Eval]) -> None:
    """Write results.json: the metrics, and of every evaluation its settings, its size and how to read its metrics."""
    settings = {}
    for evaluation in evals:
        questions = evaluation.questions()
        settings[evaluation.name] = {
            **settings_of(evaluation),
            "questions": len(questions),
            "distinct_questions": distinct(questions),
            "about": evaluation.about(),
            "legend": {
                key: {"better": legend.better, "percent": legend.percent, "headline": legend.headline}
                for key, legend in legend_of(evaluation, _own(evaluation, results.after)).items()
            },
        }
    text = json.dumps({**results._asdict(), "evals": settings}, indent=2, ensure_ascii=False)
    write_atomically(path, (text + "\n").encode())


def settings_of(part: Any) -> Any:  # noqa: ANN401 - parts are whatever fits a Protocol
    """Describe a part as a config would: its class_path and init_args, paths and values as they were given."""
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, Path):
        return str(part)
    if isinstance(part, dict):
        return {str(key): settings_of(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [settings_of(value) for value in part]
    kind = type(part)
    if dataclasses.is_dataclass(part):
        names = [field.name for field in dataclasses.fields(part) if field.init]
    else:
        names = [name for name in inspect.signature(kind).parameters if hasattr(part, name)]
    init_args = {name: settings_of(getattr(part, name)) for name in names}
    return {"class_path": class_path(kind), "init_args": init_args}


def class_path(kind: type) -> str:
    """Name a class as configs do: by the shortest path that leads to it."""
    parts = kind.__module__.split(".")
    places = (".".join(parts[:length]) for length in range(1, len(parts)))
    short = (place for place in places if getattr(sys.modules.get(place), kind.__qualname__, None) is kind)
    return f"{next(short, kind.__module__)}.{kind.__qualname__}"


def comparison(evals: Sequence[Eval], results: Results) -> Table:
    """Set the headline metrics side by side: metric, before, after, change, and on how many questions they stand.

    An arrow says which way is better; a change is green the better way and red the other. Changes of percentages are
    in percentage points. Without a ``before`` there is one column of values. A metric with bounds, such as
    ``score_low`` and ``score_high``, has its interval under it. Below the table stands what the figures depend on.
    """
    said = Text("↑ higher is better   ↓ lower is better")
    table = Table(title="Evaluations", caption=said, title_justify="left", caption_justify="left")
    table.add_column("metric", overflow="fold")  # in a narrow terminal names give way, and no figure is cut off
    for title in ("value", "n") if results.before is None else ("before", "after", "change", "n"):
        table.add_column(title, justify="right", no_wrap=True)
    for evaluation in evals:
        after = _own(evaluation, results.after)
        before = None if results.before is None else _own(evaluation, results.before)
        for key, legend in headlines(evaluation, after):
            if is_bound(key, after):
                continue
            cells = [Text(f"{evaluation.name}/{key}{ARROWS[legend.better]}")]
            if before is not None:
                cells.append(_bounded(before, key, legend))
            cells.append(_bounded(after, key, legend))
            if before is not None:
                cells.append(_change(before.get(key), after[key], key, legend))
            n = count_of(key, after)
            table.add_row(*cells, "" if n is None else f"{n:.0f}")
        table.add_section()
        if about := caption(evaluation):
            said.append(f"\n{evaluation.name}: {about}")
    return table


def caption(evaluation: Eval) -> str:
    """Say in one line what an evaluation's figures depend on besides the model."""
    return "; ".join(f"{name}: {value}" for name, value in evaluation.about().items())


def shown(value: float | None, key: str, legend: Legend) -> str:
    """Write a metric as a reader wants it: counts whole, shares as percentages, from 10 up to one decimal."""
    if value is None:
        return "-"
    return f"{_rounded(100 * value, 1)} %" if legend.percent else str(_rounded(value, _digits(key, value)))


def interval(key: str, metrics: Metrics, legend: Legend) -> str:
    """Write the bounds of a metric, such as ``[1.68, 2.49]``; nothing where it has none."""
    low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    if low is None or high is None:
        return ""
    scale, digits = (100, 1) if legend.percent else (1, min(_digits(key, max(abs(low), abs(high))), 2))
    return f"[{_rounded(scale * low, digits)}, {_rounded(scale * high, digits)}]"


def is_bound(key: str, metrics: Metrics) -> bool:
    """Whether a metric is a bound of another, and is shown with it."""
    base = key.removesuffix("_low").removesuffix("_high")
    return base != key and {base, f"{base}_low", f"{base}_high"} <= metrics.keys()


def _digits(key: str, size: float) -> int:
    name = key.rpartition("/")[2]
    return 0 if name == "n" or name.startswith("n_") else 3 if abs(size) < 10 else 1


def _rounded(value: float, digits: int) -> Decimal:
    """Round a half up, away from zero, as the report's page does; Python's own format makes 91.25 a 91.2."""
    if not math.isfinite(value):
        return Decimal(value)
    rounded = Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP, ALL_DIGITS)
    return rounded if rounded else abs(rounded)  # no minus before a zero


def _own(evaluation: Eval, metrics: Metrics) -> Metrics:
    prefix = f"{evaluation.name}/"
    return {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}


def _bounded(metrics: Metrics, key: str, legend: Legend) -> Text:
    text = Text(shown(metrics.get(key), key, legend))
    bounds = interval(key, metrics, legend)
    return text.append(f"\n{bounds}", style="dim") if bounds else text


def _change(before: float | None, after: float, key: str, legend: Legend) -> Text:
    if before is None:
        return Text("-")
    if legend.percent:
        points, unit = _rounded(100 * (after - before), 1), " pp"
    else:
        points, unit = _rounded(after - before, _digits(key, max(abs(before), abs(after)))), ""
    text = (f"{points:+f}" if points else f"{points:f}") + unit
    if legend.better is None or after == before:
        return Text(text)
    return Text(text, style="green" if (after > before) == (legend.better == "high") else "red")
