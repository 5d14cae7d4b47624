"""The evaluations that a card shows: those of exactly what is exported, or none, and why."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from synthalign.evals.legend import Legend, count_of
from synthalign.evals.results import RESULTS, Metrics, interval, is_bound, shown
from synthalign.export.source import Source, at
from synthalign.tables.hub import gist


class Figures(NamedTuple):
    """Evaluations before and after."""

    before: Metrics | None
    after: Metrics
    evals: dict[str, dict[str, Any]]
    """Of each evaluation what results.json says: class_path, init_args, about, legend."""

    by_fit: bool
    """Whether it was the run that evaluated, as it trained; else a test of what it trained."""

    step: int | None = None
    """Optimizer steps behind ``after``; None where the file does not say."""


def figures_of(source: Source, step: int | None, results: Path | None = None) -> Figures | str:
    """Find the evaluations of what is exported.

    Args:
        source: What is exported.
        step: Optimizer steps behind it, if it is a checkpoint.
        results: A results.json, or the folder of a test with one, in place of the run's own.

    Returns:
        The figures; or a sentence that says why there are none.

    Raises:
        ValueError: ``results`` is of something else, or a file is damaged.
    """
    own = results is None
    path = source.run / RESULTS if results is None else results
    path = path / RESULTS if path.is_dir() else path
    if not path.is_file():
        if not own:
            raise ValueError(f"there is no {path}: name a results.json, or the folder of a test")
        return f"The run has no {RESULTS}: it evaluated nothing, or did not come to its end."
    try:
        found = json.loads(path.read_bytes())
        before = None if found["before"] is None else _metrics(found["before"])
        evals = {name: dict(one) for name, one in found["evals"].items()}
        by_step = {int(entry["step"]): _metrics(entry["metrics"]) for entry in found["history"]}
        is_fit, tested = found["stage"] == "fit", found.get("adapter") or found.get("policy")
        figures = Figures(before, _metrics(found["after"]), evals, is_fit, max(by_step, default=None))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what a run writes: {type(error).__name__}: {gist(error)}") from error
    if is_fit and not own:
        raise ValueError(f"{path} is of a fit, whose figures are of what that has trained: name the folder of a test")
    if not is_fit:
        if not isinstance(tested, str) or Path(tested).resolve() != source.path.resolve():
            raise ValueError(f"{path} is of {tested!r}, not of {source.path}, which is exported")
        return figures
    if source.kind != "checkpoint":
        return figures
    if step not in by_step:
        return f"The run was not evaluated at step {step}, which this checkpoint is of."
    return figures._replace(after=by_step[step], step=step)


def _metrics(said: dict[str, Any]) -> Metrics:
    if odd := [name for name, value in said.items() if type(value) not in (int, float)]:
        raise TypeError(f"{odd[0]} is no number")
    return dict(said)


def table(figures: Figures) -> str:
    """Set the headline metrics side by side, in Markdown, with what they depend on."""
    both = figures.before is not None
    lines = ["| metric | before | after | n |", "|---|---:|---:|---:|"] if both else ["| metric | value | n |"]
    lines += [] if both else ["|---|---:|---:|"]
    notes = []
    for name, known in figures.evals.items():
        after, before = _own(name, figures.after), _own(name, figures.before or {})
        for key, legend in _headlines(known, after):
            cells = [_cell(before, key, legend)] if both else []
            count = count_of(key, after)
            cells += [_cell(after, key, legend), "" if count is None else f"{count:.0f}"]
            arrow = {"high": " ↑", "low": " ↓", None: ""}[legend.better]
            lines.append(f"| {name}/{key}{arrow} | {' | '.join(cells)} |")
        about = at(known, "about")
        if isinstance(about, dict) and about:
            notes.append(f"- {name}: {'; '.join(f'{what}: {value}' for what, value in about.items())}")
    baseline = "the model as this training began" if figures.by_fit else "the base model"
    below = "↑ higher is better, ↓ lower is better; n: questions" + (f"; before: {baseline}" if both else "")
    return "\n".join([*lines, "", below, *(["", *notes] if notes else [])])


def _headlines(known: dict[str, Any], metrics: Metrics) -> list[tuple[str, Legend]]:
    found = []
    for key in metrics:
        said = at(known, "legend", key)  # runs of the first version have no legends
        if at(said, "headline") is not False and not is_bound(key, metrics):
            better = at(said, "better")
            found.append((key, Legend(key, better if better in ("high", "low") else None, bool(at(said, "percent")))))
    return found


def _own(name: str, metrics: Metrics) -> Metrics:
    return {key.removeprefix(f"{name}/"): one for key, one in metrics.items() if key.startswith(f"{name}/")}


def _cell(metrics: Metrics, key: str, legend: Legend) -> str:
    return f"{shown(metrics.get(key), key, legend)} {interval(key, metrics, legend)}".strip()
