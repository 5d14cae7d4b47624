"""Reads what a run left: its evaluations in order, how to take their figures, its settings and its training curves.

Reads the files alone: nothing here loads an evaluation, so a page is there in a second.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from synthalign.pages.report_settings import in_brief

RESULTS = "results.json"

SO_FAR = "unfinished.json"
"""Of the form of results.json; there until that is."""

POINTS = 300
"""Of a training curve; more are averaged, since a page shows no more."""


class Sitting(NamedTuple):
    """One time that the model sat the evaluations."""

    label: str
    """```before training``, ``epoch 2``, ``base model``."""

    epoch: float | None
    """Epochs completed; None outside a fit."""

    step: int | None
    """Optimizer steps taken; None outside a fit."""

    samples: Path
    """Folder of the replies."""

    metrics: dict[str, float]
    """Keys with the evaluation's name in front."""


class Run(NamedTuple):
    """What a run left."""

    title: str
    stage: str
    """``fit``, ``validate``, ``test``; ``unfinished`` where results.json is missing."""

    sittings: list[Sitting]
    """In order; the first is the base model, or the model before training, where that was evaluated."""

    evals: dict[str, dict[str, Any]]
    """Of each evaluation what results.json says: class_path, init_args, questions, about, legend; empty if unknown."""

    settings: dict[str, str]
    """The settings in brief."""

    config: str
    """The whole of config.yaml; empty if there is none."""

    training: dict[str, list[list[float]]]
    """Training curves: name to [step, value], from metrics.csv."""

    notes: list[str]


def read_run(place: Path) -> tuple[Path, Run]:
    """Read a run.

    Args:
        place: The folder of a fit, a validate or a test, or the results.json in it.

    Returns:
        The run's folder, and what it left.

    Raises:
        ValueError: There is nothing to show, or a file is damaged; the message names it.
    """
    if not place.exists():
        raise ValueError(f"there is no {place}: name a run's folder, or the results.json in it")
    folder = place if place.is_dir() else place.parent
    results = folder / RESULTS if place.is_dir() else place
    logged = list(_logged(folder / "metrics.csv"))
    notes: list[str] = []
    if results.is_file():
        stage, sittings, evals, said = _written(results)
    else:
        note = f"This run is unfinished: it has no {RESULTS}. The page shows the evaluations that it came to the end of"
        if (so_far := folder / SO_FAR).is_file():
            stage, sittings, evals, said = _written(so_far)
            notes.append(f"{note}.")
        else:
            stage, (sittings, evals), said = "unfinished", _killed(folder, logged), {}
            notes.append(f"{note}; which way is better is not known.")
    config = _text(folder / "config.yaml")
    path = folder.resolve()
    title = f"{path.parent.name}/{path.name}"
    return folder, Run(title, stage, sittings, evals, said | in_brief(config, said), config, _training(logged), notes)


def _written(path: Path) -> tuple[str, list[Sitting], dict[str, dict[str, Any]], dict[str, str]]:
    """Read results.json or unfinished.json: the stage, the evaluations, what is said of them, and of the model."""
    try:
        found = json.loads(_text(path))
        stage, before, after = found["stage"], found["before"], found["after"]
        history, evals = found["history"], dict(found["evals"])
        if history:
            sittings = [
                Sitting(_label(one), one["epoch"], one["step"], path.parent / one["samples"], one["metrics"])
                for one in history
            ]
        else:
            sittings = [] if before is None else [_timeless("base model", path.parent / "samples" / "base", before)]
            label = "policy" if before is None else "aligned model"
            sittings.append(_timeless(label, path.parent / "samples" / "policy", after))
        sittings = [one._replace(metrics=dict(one.metrics)) for one in sittings]
        evals = {name: dict(known) for name, known in evals.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what a run writes ({type(error).__name__}: {error})") from None
    said = {name.capitalize(): str(found[name]) for name in ("policy", "adapter") if found.get(name) is not None}
    return stage, _told_apart(sittings), evals, said


def _timeless(label: str, samples: Path, metrics: dict[str, float]) -> Sitting:
    return Sitting(label, None, None, samples, metrics)


def _killed(folder: Path, logged: list[dict[str, str]]) -> tuple[list[Sitting], dict[str, dict[str, Any]]]:
    """Put together what a run left that came to the end of no evaluation, or whose unfinished.json is lost."""
    saved = {one: _saved(one) for one in sorted(folder.glob("samples/*"))}
    folders = [one for one, names in saved.items() if names]
    if not folders:
        inside = sorted(str(one.parent) for one in folder.glob(f"*/{RESULTS}"))
        known = f"did you mean {' or '.join(inside)}?" if inside else "has it evaluated anything yet?"
        raise ValueError(f"{folder} has neither {RESULTS} nor samples: {known}")
    evals: dict[str, dict[str, Any]] = {name: {} for one in folders for name in saved[one]}
    figures = []
    for line in logged:
        metrics = {
            key: value
            for key, text in line.items()
            if key.partition("/")[0] in evals and (value := _number(text)) is not None
        }
        if metrics:
            figures.append((_number(line.get("epoch")), _number(line.get("step")), metrics))
    sittings = []
    for one in folders:
        counted = dict(re.findall(r"(epoch|step)[-_]?(\d+)", one.name))
        if not counted:
            sittings.append(_timeless(f"{one.name} model" if one.name in ("base", "policy") else one.name, one, {}))
            continue
        epoch, step = _number(counted.get("epoch")), _number(counted.get("step"))
        fitting = [f for f in figures if epoch in (None, f[0]) and step in (None, f[1])]
        at = fitting[0] if fitting else (epoch, step, {})
        taken = None if at[1] is None else int(at[1])
        label = _label({"epoch": at[0], "step": taken, "samples": one.name})
        sittings.append(Sitting(label, at[0], taken, one, at[2]))
    sittings.sort(key=lambda one: (one.epoch or 0, one.step or 0))
    if len(sittings) > 1 and len(saved[sittings[-1].samples]) < len(evals):
        sittings.pop()  # the end came while it went on: what it has cannot stand for the model
    return _told_apart(sittings), evals


def _saved(folder: Path) -> list[str]:
    """Name the evaluations whose replies lie in a folder; what begins with a dot is a rank's part of some."""
    return sorted(path.stem for path in folder.glob("*.jsonl") if not path.name.startswith("."))


def _label(entry: Mapping[str, Any]) -> str:
    """Name an evaluation of a fit: by its epoch, or by its step where it came inside one."""
    epoch, step = entry["epoch"], entry["step"]
    name = Path(entry["samples"]).name
    if name == "base":  # of a test that got no further
        return "base model"
    if "step" in name and step:
        return f"step {step}"
    return "before training" if not (step or epoch) else f"epoch {epoch:g}"


def _told_apart(sittings: list[Sitting]) -> list[Sitting]:
    """Add the step to labels that stand more than once."""
    labels = [one.label for one in sittings]
    return [
        one._replace(label=f"{one.label}, step {one.step}") if labels.count(one.label) > 1 else one for one in sittings
    ]


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None


def _logged(path: Path) -> Iterator[dict[str, str]]:
    """Read metrics.csv but for a line that a killed run left short."""
    for line in csv.DictReader(_text(path).replace("\0", "").splitlines()):
        if None not in line and None not in line.values():
            yield line


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _training(logged: list[dict[str, str]]) -> dict[str, list[list[float]]]:
    """Return the curves of training, at most POINTS long: means of neighbours where there are more."""
    curves: dict[str, list[list[float]]] = {}
    for line in logged:
        step = _number(line.get("step"))
        for key, text in line.items():
            if key.startswith(("train/", "val/")) and step is not None and (value := _number(text)) is not None:
                curves.setdefault(key, []).append([step, value])
    for key, curve in curves.items():
        size = -(-len(curve) // POINTS)
        parts = [curve[start : start + size] for start in range(0, len(curve), size)]
        curves[key] = [[part[-1][0], sum(value for _, value in part) / len(part)] for part in parts]
    return curves
