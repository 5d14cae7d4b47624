"""The callback in real runs of a small policy that says whether an image is bright."""

import csv
import json

import pytest
import torch
from brightness import SHADES, Brightness, evaluations, fit, loader, mmhal, samples, trainer_in, write_files
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from synthalign.callbacks.evaluate import Evaluate
from synthalign.callbacks.undisturbed import undisturbed
from synthalign.evals.pope import POPE

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # eight numbers need none
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),  # some tests have none on purpose
    pytest.mark.filterwarnings("ignore:The number of training batches"),  # metrics of an epoch are what counts here
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # a resumed run goes on in it
]


def test_metrics_stand_in_the_csv_from_epoch_0_to_the_last_on_one_axis(tmp_path):
    callback = Evaluate(evals=evaluations(tmp_path))
    fit(tmp_path, [callback])
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["pope/adversarial/accuracy"]]
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "0"), ("1", "4"), ("2", "8")]
    assert float(rows[0]["pope/adversarial/accuracy"]) == 3 / 6  # the base says yes to all, three are bright
    for row, entry in zip(rows, callback.history, strict=True):
        assert entry["metrics"].items() == {key: float(row[key]) for key in entry["metrics"]}.items()
    assert callback.history[-1]["metrics"]["pope/adversarial/accuracy"] > 3 / 6


@pytest.mark.parametrize("validation", [False, True])
def test_training_is_bit_identical_with_and_without(tmp_path, validation):
    _, alone = fit(tmp_path, [], validation=validation)
    _, watched = fit(tmp_path, [Evaluate(evals=evaluations(tmp_path))], logger=False, validation=validation)
    assert len(alone.losses) == 8
    assert watched.losses == alone.losses
    assert watched.asked and not alone.asked
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))


@pytest.mark.parametrize("validation", [False, True])
def test_a_question_of_both_splits_is_asked_once_an_epoch(tmp_path, validation):
    _, model = fit(tmp_path, [Evaluate(evals=evaluations(tmp_path))], validation=validation, num_sanity_val_steps=1)
    assert set(model.asked) == {(shade, text) for shade in SHADES for text in ("Is it bright?", "Describe it.")}
    assert set(model.asked.values()) == {3}  # before training and after two epochs


def test_samples_hold_every_question_in_order_with_what_was_said(tmp_path):
    evals = evaluations(tmp_path)
    fit(tmp_path, [Evaluate(evals=evals)])
    for epoch in range(3):
        rows = samples(tmp_path / "run", f"epoch-{epoch:03d}", "pope")
        assert [row["id"] for row in rows] == [question.id for question in evals[0].questions()]
        assert all(row["correct"] == ((row["reply"] == "Yes") == (row["truth"] == "yes")) for row in rows)
        assert len(samples(tmp_path / "run", f"epoch-{epoch:03d}", "captions")) == len(SHADES)
    assert {row["yes_margin"] for row in samples(tmp_path / "run", "epoch-000", "pope")} == {1.0}
    assert not [path for path in (tmp_path / "run").rglob(".*")]


@pytest.mark.parametrize("validation", [False, True])
def test_a_checkpoint_can_monitor_a_metric_of_its_own_epoch(tmp_path, validation):
    checkpoint = ModelCheckpoint(
        dirpath=tmp_path / "best", monitor="pope/adversarial/accuracy", mode="max", save_top_k=-1, filename="{epoch}"
    )
    callback = Evaluate(evals=evaluations(tmp_path))
    fit(tmp_path, [checkpoint, callback], validation=validation)
    scores = {path: float(score) for path, score in checkpoint.best_k_models.items()}
    assert [scores[str(tmp_path / "best" / f"epoch={epoch}.ckpt")] for epoch in range(2)] == pytest.approx(
        [entry["metrics"]["pope/adversarial/accuracy"] for entry in callback.history[1:]]
    )


def test_early_stopping_can_monitor_and_the_final_model_is_still_evaluated(tmp_path):
    stopping = EarlyStopping(monitor="pope/random/accuracy", mode="max", stopping_threshold=0.1)
    callback = Evaluate(evals=evaluations(tmp_path))
    trainer, _ = fit(tmp_path, [stopping, callback], max_epochs=9)
    assert trainer.current_epoch == 1
    assert [entry["epoch"] for entry in callback.history] == [0, 1]


def test_results_json_holds_before_after_history_settings_and_counts(tmp_path):
    callback = Evaluate(evals=evaluations(tmp_path))
    fit(tmp_path, [callback])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["stage"] == "fit"
    assert results["before"] == callback.history[0]["metrics"]
    assert results["after"] == callback.history[2]["metrics"]
    assert results["history"] == callback.history
    assert results["evals"]["pope"]["class_path"] == "synthalign.evals.pope.POPE"
    assert (results["evals"]["pope"]["questions"], results["evals"]["pope"]["distinct_questions"]) == (13, 7)


@pytest.mark.parametrize("bar", [False, True])
def test_the_run_ends_with_a_table_and_where_everything_is(tmp_path, capsys, bar):
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    with pytest.warns(UserWarning, match="exists and is not empty"):
        fit(tmp_path, [Evaluate(evals=evaluations(tmp_path))], enable_progress_bar=bar)
    lines = capsys.readouterr().out.rstrip().splitlines()
    (line,) = [line for line in lines if "pope/mean/yes_ratio" in line]
    assert "100.0 %" in line
    assert lines.index(line) > max(number for number, one in enumerate(lines) if one.startswith("epoch 2"))
    assert lines[-1] == f"Everything is in {tmp_path / 'run'}: results.json, samples/, metrics.csv, adapter/"


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"every_n_epochs": 2}, [0, 2, 3]),
        ({"every_n_epochs": 5}, [0, 3]),
        ({"at_start": False}, [1, 2, 3]),
        ({"at_start": False, "every_n_epochs": 5}, [3]),
    ],
)
def test_the_last_epoch_is_never_left_out(tmp_path, settings, epochs):
    callback = Evaluate(evals=evaluations(tmp_path), **settings)
    fit(tmp_path, [callback], max_epochs=3)
    assert [entry["epoch"] for entry in callback.history] == epochs
    before = json.loads((tmp_path / "run" / "results.json").read_text())["before"]
    assert (before is None) == (0 not in epochs)


def test_a_resumed_fit_keeps_the_history_and_logs_it_again(tmp_path):
    def callbacks():
        return [Evaluate(evals=evaluations(tmp_path)), ModelCheckpoint(dirpath=tmp_path / "saved", save_top_k=-1)]

    first, saving = callbacks()
    fit(tmp_path / "first", [first, saving], max_epochs=1)
    second, resaving = callbacks()
    _, model = fit(tmp_path / "second", [second, resaving], max_epochs=3, ckpt_path=saving.best_model_path)
    assert [entry["epoch"] for entry in second.history] == [0, 1, 2, 3]
    assert second.history[:2] == first.history
    assert set(model.asked.values()) == {2}
    with (tmp_path / "second" / "run" / "metrics.csv").open() as file:
        logged = [row["step"] for row in csv.DictReader(file) if row["pope/mean/f1"]]
    assert logged == ["0", "4", "8", "12"]
    results = json.loads((tmp_path / "second" / "run" / "results.json").read_text())
    assert results["before"] == first.history[0]["metrics"]


def test_the_state_is_of_plain_types(tmp_path):
    callback = Evaluate(evals=evaluations(tmp_path))
    fit(tmp_path, [callback])
    torch.save(callback.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == callback.state_dict()


def test_under_test_the_base_comes_before_the_policy(tmp_path):
    callback = Evaluate(evals=evaluations(tmp_path))
    trainer = trainer_in(tmp_path, [callback])
    trainer.test(Brightness(slope=5.0), loader(), verbose=False)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["stage"], results["history"]) == ("test", [])
    assert results["before"]["pope/random/accuracy"] == pytest.approx(3 / 7)
    assert results["after"]["pope/random/accuracy"] == pytest.approx(6 / 7)  # 120 is dark, and still a yes
    assert results["before"]["captions/chair_s"] == 0 and results["after"]["captions/chair_s"] == pytest.approx(3 / 7)
    assert {row["reply"] for row in samples(tmp_path / "run", "base", "pope")} == {"Yes"}
    assert {row["reply"] for row in samples(tmp_path / "run", "policy", "pope")} == {"Yes", "No"}
    assert trainer.callback_metrics["pope/random/accuracy"] == pytest.approx(6 / 7)
    assert trainer.callback_metrics["base/pope/random/accuracy"] == pytest.approx(3 / 7)


@pytest.mark.parametrize("why", ["no baseline", "no adapter", "validate"])
def test_the_policy_alone_is_evaluated_where_no_base_is_wanted(tmp_path, why):
    model = Brightness(slope=5.0)
    model.has_adapter = why != "no adapter"
    trainer = trainer_in(tmp_path, [Evaluate(evals=evaluations(tmp_path), baseline=why != "no baseline")])
    run = trainer.validate if why == "validate" else trainer.test
    run(model, loader(), verbose=False)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["before"] is None
    assert results["after"]["pope/random/accuracy"] == pytest.approx(6 / 7)
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["policy"]


def test_the_policy_answers_under_the_precision_of_the_trainer(tmp_path):
    class Reduced(Brightness):
        def answer(self, images, questions, *, max_new_tokens):
            assert torch.is_autocast_enabled("cpu")
            assert self(torch.ones(1, 1)).dtype == torch.bfloat16
            return super().answer(images, questions, max_new_tokens=max_new_tokens)

    _, model = fit(tmp_path, [Evaluate(evals=evaluations(tmp_path))], Reduced(), precision="bf16-mixed")
    assert model.asked


def test_without_a_logger_the_default_folder_is_the_runs(tmp_path):
    trainer = trainer_in(
        tmp_path, [Evaluate(evals=evaluations(tmp_path))], logger=False, default_root_dir=tmp_path / "here"
    )
    trainer.test(Brightness(), loader(), verbose=False)
    assert (tmp_path / "here" / "results.json").exists()


def test_unjudged_answers_are_saved_and_bring_no_metric(tmp_path):
    write_files(tmp_path, SHADES[:1])
    trainer = trainer_in(tmp_path, [Evaluate(evals=[mmhal(tmp_path, None)])])
    trainer.test(Brightness(), loader(), verbose=False)
    (row,) = samples(tmp_path / "run", "policy", "mmhal")
    assert (row["reply"], row["correct"]) == ("a lamp", None)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["after"] == {}
    assert not trainer.callback_metrics


def test_a_mistake_in_a_file_shows_before_there_is_a_run(tmp_path):
    evals = evaluations(tmp_path)
    (tmp_path / "images" / "60.png").unlink()
    with pytest.raises(ValueError, match=r"random\.json, line 2: no image '60\.png'"):
        Evaluate(evals=evals)


def test_an_image_that_is_not_there_or_none_is_named_with_the_setting_before_there_is_a_run(tmp_path):
    evals = evaluations(tmp_path)
    (tmp_path / "images" / "60.png").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"^pope: image cannot be read: .*images/60\.png .*; replace it$"):
        Evaluate(evals=evals)
    nowhere = POPE(files={"a": tmp_path / "random.json"}, images=None, name="nowhere")
    with pytest.raises(ValueError, match=r"^nowhere: image not found: 20\.png; set its `images`"):
        Evaluate(evals=[nowhere])


def test_an_image_that_breaks_later_ends_the_run_in_one_line_and_spares_what_was_there(tmp_path):
    class Breaks(Brightness):
        def on_train_batch_start(self, batch, batch_idx):
            broken = tmp_path / "images" / "60.png"
            broken.write_bytes(broken.read_bytes()[:40])

    with pytest.raises(ValueError, match=r"^image cannot be read: .*images/60\.png"):
        fit(tmp_path, [Evaluate(evals=evaluations(tmp_path))], Breaks())
    left = sorted(str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*.json*"))
    assert left == ["samples/epoch-000/captions.jsonl", "samples/epoch-000/pope.jsonl", "unfinished.json"]


def test_a_broken_run_reports_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="the training broke"):
        fit(tmp_path, [Evaluate(evals=evaluations(tmp_path))], Brightness(fails_at=5))
    assert (tmp_path / "run" / "samples" / "epoch-001" / "pope.jsonl").exists()
    assert not (tmp_path / "run" / "results.json").exists()


def test_undisturbed_gives_back_every_mode_and_random_state():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout()))
    module.train()
    module[1].eval()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with pytest.raises(KeyError), undisturbed(module):
        assert not any(part.training for part in module.modules()) and not torch.is_grad_enabled()
        torch.rand(5)
        raise KeyError
    assert [part.training for part in module.modules()] == [True, True, False, False]
    assert torch.is_grad_enabled()
    with undisturbed(module):
        torch.manual_seed(3)
    torch.manual_seed(0)
    with undisturbed(module):
        torch.rand(5)
    assert torch.equal(torch.rand(3), expected)


def test_settings_that_cannot_be_are_refused_at_once(tmp_path):
    evals = evaluations(tmp_path)
    for settings, complaint in (
        ({"evals": []}, "evals is empty"),
        ({"evals": [evals[0], evals[0]]}, "two evals are named 'pope'"),
        ({"evals": [POPE(files={"a": tmp_path}, images=tmp_path, name="a/b")]}, "'a/b' cannot name an eval"),
        ({"evals": evals, "every_n_epochs": 0}, "every_n_epochs=0"),
        ({"evals": evals, "every_n_steps": 0}, "every_n_steps=0; it must be at least 1, or null"),
    ):
        with pytest.raises(ValueError, match=complaint):
            Evaluate(**settings)
