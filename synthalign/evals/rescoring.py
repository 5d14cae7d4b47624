"""The figures of a run over again, from the answers that it saved: what came out, and does it come out again?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from synthalign.evals.answers import matched, read_answers
from synthalign.evals.mmhal import MMHal
from synthalign.evals.mmhal.judgements import judgements_in
from synthalign.evals.results import RESULTS, Metrics, Results, class_path
from synthalign.tables import json_rows, json_whole
from synthalign.types import Eval, Judgement


class Rescored(NamedTuple):
    """A run's evaluations and their figures, made again."""

    evals: list[Eval]
    results: Results
    figures: int
    """How many figures there are, over all evaluations of the run."""

    changed: list[str]
    """Those of results.json that did not come out again, as ``samples/epoch-001 pope/random/accuracy``."""


@dataclass(frozen=True)
class PastJudge:
    """A Judge whose judgements are on disk; it rates nothing more."""

    said: dict[str, str]

    def about(self) -> dict[str, str]:
        """Say who judged."""
        return self.said

    def judge(self, contents: Any, questions: Any, references: Any, answers: Any) -> list[Judgement]:  # noqa: ANN401
        """Refuse: nothing that is not judged is given to it."""
        raise AssertionError("a judge of the past was asked")

    def release(self) -> None:
        """Do nothing: it has no weights."""


def rescored(run: Path) -> Rescored:
    """Score the saved answers of a run again, with the evaluations and settings that its results.json names.

    Those are looked for where the run had them: relative paths begin in the working directory. Images are not needed.
    Judged answers keep their judgements.

    Args:
        run: The folder of results.json and ``samples``, of any stage.

    Raises:
        ValueError: A file is missing or not as it should be, or an evaluation cannot be built.
    """
    saved = _saved(run / RESULTS)
    past = _figures(saved)
    folders = list(past)
    evals = [_evaluation(name, part, run / RESULTS) for name, part in saved["evals"].items()]
    metrics = {folder: _metrics(evals, run / folder) for folder in folders}
    before = metrics[folders[0]] if saved["before"] is not None else None
    history = [entry | {"metrics": metrics[entry["samples"]]} for entry in saved["history"]]
    changed = [
        f"{folder} {key}"
        for folder in folders
        for key, figure in past[folder].items()
        if not _same(figure, metrics[folder].get(key))
    ]
    of = {key: saved.get(key) for key in ("policy", "adapter", "seed")}
    results = Results(saved["stage"], before, metrics[folders[-1]], history, **of)
    return Rescored(evals, results, sum(map(len, metrics.values())), changed)


def judge_of(samples: Path) -> dict[str, str]:
    """Say who judged the samples of a run, by its results.json; nothing where there is none that speaks of them.

    Args:
        samples: A file of one evaluation, where its run has put it.
    """
    folder = samples.absolute().parent
    try:
        saved = _saved(folder.parent.parent / RESULTS)
    except ValueError:  # none, or not one of ours: others call a file so too
        return {}
    ours = f"{folder.parent.name}/{folder.name}" in _figures(saved) and samples.stem in saved["evals"]
    return dict(saved["evals"][samples.stem]["about"]) if ours else {}


def _saved(file: Path) -> dict[str, Any]:
    """Read results.json, in which all is found that is looked for later."""
    if not file.is_file():
        raise ValueError(f"no {file}: give the folder of a fit, validate or test that came to its end")
    saved: dict[str, Any] = json_whole(file)
    try:
        for key in ("stage", "before", "after"):
            saved[key]
        for metrics in _figures(saved).values():
            dict(metrics)
        for part in saved["evals"].values():
            part["class_path"]
            dict(part["init_args"])
            dict(part["about"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: not the results of a run ({type(error).__name__}: {error})") from None
    return saved


def _figures(saved: Mapping[str, Any]) -> dict[str, Metrics]:
    """Return all metrics of results.json, in order, by the folder of their samples."""
    if saved["history"]:
        return {entry["samples"]: entry["metrics"] for entry in saved["history"]}
    before = {} if saved["before"] is None else {"samples/base": saved["before"]}
    return before | {"samples/policy": saved["after"]}


def _evaluation(name: str, part: Mapping[str, Any], file: Path) -> Eval:
    """Build an evaluation as the run's config did, without images, and with its judge's name in place of the judge."""
    from jsonargparse import ArgumentParser

    init_args = dict(part["init_args"])
    if "images" in init_args:
        init_args["images"] = None
    judged = part["class_path"] == class_path(MMHal) and init_args.pop("judge", None) is not None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--evaluation", type=Eval)
    try:
        config = parser.parse_object({"evaluation": {"class_path": part["class_path"], "init_args": init_args}})
        evaluation: Eval = parser.instantiate(config).evaluation
    except Exception as error:  # whatever the parser, or the constructor of a user's own class, has against it
        raise ValueError(f"{file}: {name!r} cannot be built again: {error}") from None
    return (
        replace(evaluation, judge=PastJudge(part["about"])) if judged and isinstance(evaluation, MMHal) else evaluation
    )


def _metrics(evals: list[Eval], folder: Path) -> Metrics:
    metrics: Metrics = {}
    for evaluation in evals:
        questions, file = evaluation.questions(), folder / f"{evaluation.name}.jsonl"
        replies = matched(questions, read_answers(file), file)
        if isinstance(evaluation, MMHal) and any(row.get("judged") for _, row in json_rows(file)):
            verdicts = evaluation.judged(questions, judgements_in(file, questions))
        elif isinstance(evaluation, MMHal):
            verdicts = [{"correct": None, "judged": False} for _ in questions]
        else:
            verdicts = evaluation.verdicts(questions, replies)
        report = evaluation.report(evaluation.tally(questions, verdicts))
        metrics |= {f"{evaluation.name}/{key}": value for key, value in report.items()}
    return metrics


def _same(figure: float, again: float | None) -> bool:
    """Whether two figures agree, but for the order in which their sums were made."""
    return again is not None and math.isclose(figure, again, rel_tol=1e-9, abs_tol=1e-12)
