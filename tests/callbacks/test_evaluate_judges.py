"""A judge that fails costs figures, never answers, and no training that has begun."""

import json
import math

import pytest
from brightness import Brightness, Letters, fit, loader, mmhal, pope, samples, trainer_in, write_files
from lightning.pytorch.callbacks import ModelCheckpoint

from synthalign.callbacks.evaluate import Evaluate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # eight numbers need none
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),  # some tests have none on purpose
    pytest.mark.filterwarnings("ignore:The number of training batches"),  # metrics of an epoch are what counts here
]

WHY = "the judge at localhost:1 does not answer"


def both(folder, judge):
    write_files(folder)
    return [pope(folder), mmhal(folder, judge)]


def test_a_judge_that_is_gone_before_the_first_step_ends_the_run_with_the_answers_saved(tmp_path):
    model = Brightness()
    with pytest.raises(RuntimeError, match=f"^mmhal: answers are UNJUDGED .{WHY}.*nothing is trained yet"):
        fit(tmp_path, [Evaluate(evals=both(tmp_path, Letters(0)))], model)
    assert model.losses == []
    rows = samples(tmp_path / "run", "epoch-000", "mmhal")
    assert {row["reply"] for row in rows} == {"a lamp"} and {row["correct"] for row in rows} == {None}
    assert {row["correct"] for row in samples(tmp_path / "run", "epoch-000", "pope")} == {True, False}
    assert not (tmp_path / "run" / "results.json").exists()
    assert not list((tmp_path / "run").rglob(".*"))


def test_training_outlives_a_judge_and_says_what_is_missing_twice(tmp_path, capsys):
    best = ModelCheckpoint(
        dirpath=tmp_path / "best", monitor="mmhal/score", mode="max", filename="{epoch}", save_top_k=-1
    )
    callback = Evaluate(evals=both(tmp_path, Letters(2)))
    trainer, model = fit(tmp_path, [callback, best], max_epochs=3, validation=True)
    assert len(model.losses) == 12
    assert [("mmhal/score" in entry["metrics"], "pope/mean/f1" in entry["metrics"]) for entry in callback.history] == [
        (True, True),
        (True, True),
        (False, True),
        (False, True),
    ]
    assert math.isnan(trainer.callback_metrics["mmhal/score"])
    assert best.best_model_path.endswith("epoch=0.ckpt")
    rows = samples(tmp_path / "run", "epoch-002", "mmhal")
    assert len(rows) == 7 and {row["correct"] for row in rows} == {None}
    said = capsys.readouterr()
    lines = [
        f"mmhal: answers are UNJUDGED ({WHY}); they are in {tmp_path}/run/samples/epoch-{epoch:03d}/mmhal.jsonl"
        for epoch in (2, 3)
    ]
    assert [line for line in said.err.splitlines() if "UNJUDGED" in line] == lines
    assert said.out.splitlines()[-3:-1] == lines
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "mmhal/score" in results["before"] and "mmhal/score" not in results["after"]


def test_under_test_the_other_evaluations_are_reported_before_the_run_fails(tmp_path, capsys):
    trainer = trainer_in(tmp_path, [Evaluate(evals=list(reversed(both(tmp_path, Letters(1)))))])
    with pytest.raises(RuntimeError, match=f"^mmhal: answers are UNJUDGED .{WHY}.; they are in .*policy/mmhal.jsonl"):
        trainer.test(Brightness(slope=5.0), loader(), verbose=False)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "mmhal/score" in results["before"] and "mmhal/score" not in results["after"]
    assert results["after"]["pope/random/accuracy"] == pytest.approx(6 / 7)
    assert "pope/mean/f1" in capsys.readouterr().out
    assert {row["correct"] for row in samples(tmp_path / "run", "policy", "mmhal")} == {None}


def test_a_mistake_in_the_verdicts_of_our_own_is_no_judges_failure(tmp_path):
    class Broken(Letters):
        def judge(self, contents, questions, references, answers):
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        fit(tmp_path, [Evaluate(evals=both(tmp_path, Broken()), at_start=False)])
    assert len(samples(tmp_path / "run", "epoch-001", "mmhal")) == 7
