"""What a run shows of itself that never came to its end."""

import json

import pytest
from brightness import Brightness, evaluations, fit, loader, trainer_in
from lightning.pytorch.callbacks import ModelCheckpoint

from synthalign.callbacks.evaluate import Evaluate
from synthalign.pages.report_run import read_run

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # eight numbers need none
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),  # some tests have none on purpose
    pytest.mark.filterwarnings("ignore:The number of training batches"),  # metrics of an epoch are what counts here
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # a resumed run goes on in it
]


def broken(folder, callbacks, fails_at, **settings):
    with pytest.raises(RuntimeError, match="the training broke"):
        fit(folder, callbacks, Brightness(fails_at=fails_at), **settings)
    return json.loads((folder / "run" / "unfinished.json").read_text())


def test_a_broken_fit_leaves_its_history_with_settings_and_legend(tmp_path):
    callback = Evaluate(evals=evaluations(tmp_path))
    saved = broken(tmp_path, [callback], fails_at=5)
    assert [entry["epoch"] for entry in saved["history"]] == [0, 1] and saved["history"] == callback.history
    assert saved["evals"]["pope"]["legend"]["mean/f1"] == {"better": "high", "percent": True, "headline": True}
    run = read_run(tmp_path / "run")[1]
    assert [(one.label, one.metrics) for one in run.sittings] == [
        ("before training", callback.history[0]["metrics"]),
        ("epoch 1", callback.history[1]["metrics"]),
    ]
    assert (run.stage, run.evals) == ("unfinished", saved["evals"])


def test_a_resumed_fit_that_breaks_again_has_what_it_took_up(tmp_path):
    def parts():
        return [
            Evaluate(evals=evaluations(tmp_path)),
            ModelCheckpoint(dirpath=tmp_path / "saved", save_on_train_epoch_end=True),
        ]

    first = broken(tmp_path / "first", parts(), fails_at=5)
    (saved,) = (tmp_path / "saved").glob("*.ckpt")
    second = broken(tmp_path / "second", parts(), fails_at=5, ckpt_path=saved)
    assert second == first


def test_a_test_that_breaks_after_the_base_shows_the_base(tmp_path):
    class Breaks(Brightness):
        def answer(self, images, questions, *, max_new_tokens):
            if self.adapter_on:
                raise KeyError("the policy broke")
            return super().answer(images, questions, max_new_tokens=max_new_tokens)

    with pytest.raises(KeyError):
        trainer_in(tmp_path, [Evaluate(evals=evaluations(tmp_path))]).test(Breaks(), loader(), verbose=False)
    run = read_run(tmp_path / "run")[1]
    assert [(one.label, one.samples.name, one.epoch) for one in run.sittings] == [("base model", "base", None)]
    assert run.stage == "unfinished" and run.sittings[0].metrics["pope/random/accuracy"] == pytest.approx(3 / 7)


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_run_that_ends_leaves_results_alone(tmp_path, stage):
    callbacks = [Evaluate(evals=evaluations(tmp_path))]
    if stage == "fit":
        fit(tmp_path, callbacks)
    else:
        trainer_in(tmp_path, callbacks).test(Brightness(), loader(), verbose=False)
    assert sorted(path.name for path in (tmp_path / "run").glob("*.json")) == ["results.json"]
