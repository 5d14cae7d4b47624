"""When a fit is evaluated, what monitors see of it, and that a resumed run comes to what an undisturbed one does."""

import csv
import json
import shutil

import pytest
import torch
from brightness import Brightness, evaluations, fit, samples
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from synthalign.callbacks.evaluate import Evaluate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # eight numbers need none
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),  # some tests have none on purpose
    pytest.mark.filterwarnings("ignore:The number of training batches"),  # metrics of an epoch are what counts here
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # a resumed run goes on in it
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),  # batches are alike
]

F1 = "pope/mean/f1"

# Four batches alike: Lightning resumes a plain loader at the right batch's number with the wrong batch.
ALIKE = DataLoader(TensorDataset(torch.tensor([[60.0], [200.0]] * 4), torch.tensor([[0.0], [1.0]] * 4)), batch_size=2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every_n_steps": 3}, {0: "epoch-000", 3: "step-000003", 4: "epoch-001", 6: "step-000006", 8: "epoch-002"}),
        ({"every_n_steps": 4}, {0: "epoch-000", 4: "epoch-001", 8: "epoch-002"}),
        (
            {"every_n_steps": 3, "every_n_epochs": None},
            {0: "epoch-000", 3: "step-000003", 6: "step-000006", 8: "epoch-002"},
        ),
        ({"every_n_steps": 4, "every_n_epochs": None}, {0: "epoch-000", 4: "step-000004", 8: "step-000008"}),
        ({"every_n_epochs": None}, {0: "epoch-000", 8: "epoch-002"}),
        ({"every_n_steps": 5, "at_start": False}, {4: "epoch-001", 5: "step-000005", 8: "epoch-002"}),
    ],
)
def test_every_model_is_evaluated_when_due_and_once(tmp_path, settings, expected):
    callback = Evaluate(evals=evaluations(tmp_path), **settings)
    _, model = fit(tmp_path, [callback])
    assert {entry["step"]: entry["samples"] for entry in callback.history} == {
        step: f"samples/{label}" for step, label in expected.items()
    }
    assert [entry["epoch"] for entry in callback.history] == [step // 4 for step in expected]  # four steps an epoch
    assert set(model.asked.values()) == {len(expected)}
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == sorted(expected.values())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["before"] is None) == (0 not in expected)


def test_steps_are_the_optimizers_where_gradients_accumulate(tmp_path):
    callback = Evaluate(evals=evaluations(tmp_path), every_n_steps=1, every_n_epochs=None)
    _, model = fit(tmp_path, [callback], accumulate_grad_batches=3)  # of four batches: two steps an epoch
    assert [entry["step"] for entry in callback.history] == [0, 1, 2, 3, 4]
    assert set(model.asked.values()) == {5}


def test_the_last_model_is_evaluated_where_steps_run_out_within_an_epoch(tmp_path):
    callback = Evaluate(evals=evaluations(tmp_path), every_n_epochs=None, every_n_steps=2)
    fit(tmp_path, [callback], max_epochs=-1, max_steps=3)
    assert [entry["step"] for entry in callback.history] == [0, 2, 3]


@pytest.mark.parametrize("validation", [False, True])
def test_a_checkpoint_after_a_step_sees_the_figures_of_that_step(tmp_path, validation):
    checkpoint = ModelCheckpoint(
        dirpath=tmp_path / "best", monitor=F1, mode="max", save_top_k=-1, every_n_train_steps=3, filename="{step}"
    )
    callback = Evaluate(evals=evaluations(tmp_path), every_n_steps=3)
    fit(tmp_path, [checkpoint, callback], validation=validation)
    by_step = {entry["step"]: entry["metrics"][F1] for entry in callback.history}
    assert {path.rpartition("=")[2]: float(score) for path, score in checkpoint.best_k_models.items()} == {
        f"{step}.ckpt": pytest.approx(by_step[step]) for step in (3, 6)
    }


def test_early_stopping_sees_the_figures_of_its_own_epoch(tmp_path):
    callback = Evaluate(evals=evaluations(tmp_path))
    fit(tmp_path, [callback], max_epochs=3)
    reached = [entry["metrics"][F1] for entry in callback.history]
    assert reached[1] > reached[0]
    stopping = EarlyStopping(monitor=F1, mode="max", stopping_threshold=(reached[0] + reached[1]) / 2)
    callback = Evaluate(evals=evaluations(tmp_path))
    fit(tmp_path / "again", [stopping, callback], max_epochs=3)
    assert [entry["epoch"] for entry in callback.history] == [0, 1]


class Dies(Callback):
    """Ends a run before a batch, as a lost machine would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError("the machine is gone")


@pytest.mark.parametrize(
    ("settings", "saving", "dies_at", "validation"),
    [
        ({"every_n_steps": 2}, {"every_n_train_steps": 2}, 3, False),  # within an epoch
        (
            {"every_n_steps": 3},
            {"every_n_train_steps": 4},
            5,
            False,
        ),  # after an epoch's last step, before its evaluation
        ({}, {"every_n_train_steps": 4}, 6, True),
        ({"every_n_epochs": 2}, {"every_n_epochs": 1}, 7, True),
        ({"every_n_steps": 4}, {"every_n_train_steps": 4}, 4, False),
    ],
)
def test_a_resumed_run_ends_with_the_results_and_samples_of_an_undisturbed_one(
    tmp_path, settings, saving, dies_at, validation
):
    def parts():
        evaluate = Evaluate(evals=evaluations(tmp_path), **settings)
        return [evaluate, ModelCheckpoint(dirpath=tmp_path / "saved", save_top_k=-1, **saving)]

    def run(name, callbacks, ckpt_path=None):
        settings = {"max_epochs": 3, "validation": validation, "data": ALIKE, "ckpt_path": ckpt_path}
        fit(tmp_path / name, callbacks, Brightness(dropout=0.0), **settings)

    run("whole", parts())
    shutil.rmtree(tmp_path / "saved")
    with pytest.raises(RuntimeError, match="the machine is gone"):
        run("first", [*parts(), Dies(dies_at)])
    run("second", parts(), max((tmp_path / "saved").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns))
    whole, second = tmp_path / "whole" / "run", tmp_path / "second" / "run"
    assert (second / "results.json").read_text() == (whole / "results.json").read_text()
    files = sorted(path.relative_to(whole) for path in whole.glob("samples/*/*"))
    assert files == sorted(path.relative_to(second) for path in second.glob("samples/*/*"))
    for file in files:
        assert (second / file).read_bytes() == (whole / file).read_bytes()


def test_a_run_resumed_at_its_very_end_still_ends_with_results(tmp_path):
    def parts():
        return [
            Evaluate(evals=evaluations(tmp_path), every_n_epochs=None),
            ModelCheckpoint(dirpath=tmp_path / "saved", save_top_k=-1, every_n_train_steps=4),
        ]

    fit(tmp_path / "whole", parts(), max_epochs=-1, max_steps=4)
    (saved,) = (tmp_path / "saved").glob("*.ckpt")
    fit(tmp_path / "second", parts(), max_epochs=-1, max_steps=4, ckpt_path=saved)
    results = [json.loads((tmp_path / name / "run" / "results.json").read_text()) for name in ("whole", "second")]
    assert results[0]["after"] == results[1]["after"]
    assert len(results[1]["history"]) == 2
    for entry in results[1]["history"]:
        assert (tmp_path / "second" / "run" / entry["samples"] / "pope.jsonl").is_file()
    with (tmp_path / "second" / "run" / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row[F1]] == ["0", "4"]


def test_samples_that_are_gone_are_named(tmp_path, capsys):
    def parts():
        return [Evaluate(evals=evaluations(tmp_path)), ModelCheckpoint(dirpath=tmp_path / "saved")]

    fit(tmp_path / "first", parts(), max_epochs=1)
    shutil.rmtree(tmp_path / "first" / "run")
    (saved,) = (tmp_path / "saved").glob("*.ckpt")
    fit(tmp_path / "second", parts(), ckpt_path=saved)
    said = capsys.readouterr().err.splitlines()
    gone = tmp_path / "first" / "run" / "samples"
    assert [line for line in said if line.startswith("samples of")] == [
        f"samples of an earlier evaluation are not here: no folder {gone / label}"
        for label in ("epoch-000", "epoch-001")
    ]
    assert samples(tmp_path / "second" / "run", "epoch-002", "pope")


def test_each_evaluation_is_a_line_with_what_changed_since_the_first(tmp_path, capsys):
    callback = Evaluate(evals=evaluations(tmp_path), every_n_steps=3)
    fit(tmp_path, [callback], Brightness(), max_epochs=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("epoch ", "step "))]
    f1 = [100 * entry["metrics"][F1] for entry in callback.history]
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "step 3", "epoch 1"]
    assert f"f1 {f1[0]:.1f}" in lines[0] and "(+" not in lines[0]
    assert f"f1 {f1[1]:.1f} ({f1[1] - f1[0]:+.1f})" in lines[1] and "captions chair_i" in lines[1]
    assert lines[2].endswith("(samples/epoch-001)")
