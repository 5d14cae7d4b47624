import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import saved_answers

from synthalign.evals.mmhal import MMHal
from synthalign.evals.pope import POPE
from synthalign.evals.rescoring import judge_of, rescored
from synthalign.evals.results import Results, write_results
from synthalign.evals.samples import sample_rows
from synthalign.types import Judgement, Reply


@dataclass(frozen=True, kw_only=True)
class ByLength:
    """A judge to whom a long answer is a good one."""

    def about(self):
        return {"judge": "by length", "judge_revision": "2", "judge_prompt": "none"}

    def judge(self, contents, questions, references, answers):
        return [Judgement(min(len(answer), 6), "", True) for answer in answers]

    def release(self):
        pass


def evals_of(folder, judge):
    saved_answers.pope(folder)
    saved_answers.mmhal(folder)
    return [
        POPE(files={"random": folder / "coco_pope_random.json"}, images=None),
        MMHal(file=folder / "template.json", images=None, judge=judge),
    ]


def sit(run, samples, evals, said):
    """Answer everything alike, save it as a run does, and return the figures."""
    metrics: dict[str, float] = {}
    for evaluation in evals:
        questions = evaluation.questions()
        replies = [Reply(said)] * len(questions)
        verdicts = evaluation.verdicts(questions, replies)
        (run / samples).mkdir(parents=True, exist_ok=True)
        rows = sample_rows(questions, replies, verdicts)
        saved_answers.lines(run / samples / f"{evaluation.name}.jsonl", *rows)
        report = evaluation.report(evaluation.tally(questions, verdicts))
        metrics |= {f"{evaluation.name}/{key}": value for key, value in report.items()}
    return metrics


@pytest.fixture
def fit(tmp_path: Path) -> tuple[Path, Results]:
    evals, run = evals_of(tmp_path, ByLength()), tmp_path / "fit"
    history = []
    for epoch, said in enumerate(["Yes", "No", "I do not know"]):
        samples = f"samples/{epoch}"
        metrics = sit(run, samples, evals, said)
        history.append({"epoch": epoch, "step": epoch, "samples": samples, "metrics": metrics})
    results = Results("fit", history[0]["metrics"], history[-1]["metrics"], history, policy="llava", seed=3)
    write_results(run / "results.json", results, evals)
    return run, results


def test_a_runs_figures_come_out_again_without_its_images_and_its_judge(fit):
    run, results = fit
    again = rescored(run)
    assert again.results == results
    assert (again.changed, again.figures) == ([], 3 * len(results.after))
    assert [evaluation.name for evaluation in again.evals] == ["pope", "mmhal"]
    assert again.evals[1].about()["judge"] == "by length"


@pytest.mark.parametrize("baseline", [False, True])
def test_a_test_has_a_base_and_a_policy_or_the_policy_alone(baseline, tmp_path):
    evals, run = evals_of(tmp_path, ByLength()), tmp_path / "test"
    before = sit(run, "samples/base", evals, "Yes") if baseline else None
    results = Results("test", before, sit(run, "samples/policy", evals, "No"), [])
    write_results(run / "results.json", results, evals)
    assert rescored(run).results == results


def test_unjudged_answers_have_no_figures_then_or_now(tmp_path):
    evals, run = evals_of(tmp_path, None), tmp_path / "test"
    results = Results("test", None, sit(run, "samples/policy", evals, "No"), [])
    write_results(run / "results.json", results, evals)
    again = rescored(run)
    assert again.results == results
    assert not [key for key in again.results.after if key.startswith("mmhal/")]


def test_a_figure_that_is_another_now_is_named(fit):
    run, _ = fit
    file = run / "samples" / "2" / "pope.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    saved_answers.lines(file, *(row | {"reply": "Yes"} for row in rows))
    changed = rescored(run).changed
    assert "samples/2 pope/random/yes_ratio" in changed
    assert all(one.startswith("samples/2 pope/") for one in changed)


def test_an_answer_that_is_gone_is_an_error(fit):
    run, _ = fit
    file = run / "samples" / "1" / "pope.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[1:]))
    with pytest.raises(ValueError, match=r"pope\.jsonl: 1 of 4 questions have no answer \('random/0'\)"):
        rescored(run)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda saved: saved.pop("evals"), r"results\.json: not the results of a run \(KeyError: 'evals'\)"),
        (lambda saved: saved["history"][1].pop("samples"), r"not the results of a run \(KeyError: 'samples'\)"),
        (lambda saved: saved["evals"]["mmhal"].pop("about"), r"not the results of a run \(KeyError: 'about'\)"),
        (lambda saved: saved.pop("before"), r"not the results of a run \(KeyError: 'before'\)"),
        (lambda saved: saved.update(history=3), r"not the results of a run \(TypeError"),
        (lambda saved: saved.update(evals=[3]), r"not the results of a run \(AttributeError"),
        (lambda saved: saved["evals"]["pope"].update(class_path="gone.POPE"), r"'pope' cannot be built again.*gone"),
        (lambda saved: saved["evals"]["pope"]["init_args"].update(fil="x"), r"'pope' cannot be built again.*fil"),
        (lambda saved: saved["evals"]["pope"]["init_args"].update(files={}), r"'pope' cannot be built again"),
    ],
)
def test_results_that_say_too_little_are_an_error(spoil, said, fit):
    run, _ = fit
    saved = json.loads((run / "results.json").read_text())
    spoil(saved)
    (run / "results.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=f"(?s){said}"):
        rescored(run)


def test_who_judged_a_samples_file_stands_in_the_results_of_its_run(fit):
    run, _ = fit
    samples = run / "samples" / "1" / "mmhal.jsonl"
    assert judge_of(samples) == {"judge": "by length", "judge_revision": "2", "judge_prompt": "none"}
    assert judge_of(run / "samples" / "7" / "mmhal.jsonl") == judge_of(samples.with_name("other.jsonl")) == {}
    (run / "results.json").write_text("[]")  # another tool's
    assert judge_of(samples) == {}


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no .*results\.json: give the folder of a fit"):
        rescored(tmp_path)
