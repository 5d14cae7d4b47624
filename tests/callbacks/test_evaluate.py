"""The callback in real runs of a small policy that says whether an image is bright.

Run as a script it is one rank of a run: ``python test_evaluate.py FOLDER DEVICES``.
"""

import csv
import json
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from synthalign.callbacks.evaluate import Evaluate, undisturbed
from synthalign.evals.captions import Captions
from synthalign.evals.mmhal import MMHal
from synthalign.evals.pope import POPE
from synthalign.types import Eval, Reply

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # eight numbers need none
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),  # some tests have none on purpose
    pytest.mark.filterwarnings("ignore:The number of training batches"),  # metrics of an epoch are what counts here
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # a resumed run goes on in it
]

SHADES = (20, 60, 90, 120, 160, 200, 240)
BRIGHT = 130


class Brightness(LightningModule):
    """A policy of two parameters. Its base says yes to everything; the adapter learns which images are bright."""

    has_adapter = True

    def __init__(self, slope: float = 0.0, *, fails_at: int | None = None) -> None:
        super().__init__()
        self.base_margin = 1.0
        self.adapter = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.adapter.weight, slope)
        torch.nn.init.constant_(self.adapter.bias, 0.0)
        self.dropout = torch.nn.Dropout(0.5)
        self.adapter_on = True
        self.fails_at = fails_at
        self.losses: list[float] = []
        self.asked: Counter[tuple[int, str]] = Counter()

    def forward(self, shades):
        centred = (shades - BRIGHT) / 100
        return self.base_margin + self.adapter(self.dropout(centred)) * self.adapter_on

    def answer(self, images, questions, *, max_new_tokens):
        assert not self.training and not self.dropout.training and not torch.is_grad_enabled()
        torch.rand(3)  # a policy may use random numbers; training must not notice
        shades = [image.getpixel((0, 0))[0] for image in images]
        self.asked.update(zip(shades, questions, strict=True))
        margins = self(torch.tensor(shades, dtype=torch.float32)[:, None])[:, 0].tolist()
        captions = ["a lamp" if margin > 0 else "a shadow" for margin in margins]
        return [
            Reply(caption) if "Describe" in text else Reply("Yes" if margin > 0 else "No", False, margin)
            for margin, caption, text in zip(margins, captions, questions, strict=True)
        ]

    @contextmanager
    def adapters_off(self):
        self.adapter_on = False
        yield
        self.adapter_on = True

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fails_at:
            raise RuntimeError("the training broke")
        shades, bright = batch
        loss = torch.nn.functional.binary_cross_entropy_with_logits(self(shades), bright)
        self.log("loss", loss)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def loader(*, shuffle=False):
    shades = torch.tensor(SHADES, dtype=torch.float32)[:, None]
    return DataLoader(TensorDataset(shades, (shades > BRIGHT).float()), batch_size=2, shuffle=shuffle)


def evaluations(folder: Path) -> list[Eval]:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for shade in SHADES:
        Image.new("L", (3, 3), shade).save(images / f"{shade}.png")  # grey: the policy must get RGB
    truth = {shade: "yes" if shade > BRIGHT else "no" for shade in SHADES}
    for split, shades in (("random", SHADES), ("adversarial", SHADES[1:])):
        rows = [
            {"question_id": number, "image": f"{shade}.png", "text": "Is it bright?", "label": truth[shade]}
            for number, shade in enumerate(shades)
        ]
        (folder / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    captions = [
        {"id": f"c{shade}", "image": f"{shade}.png", "question": "Describe it.", "objects": ["lamp"]}
        for shade in SHADES
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))
    (folder / "objects.txt").write_text("lamp\nshadow\n")
    files = {split: folder / f"{split}.json" for split in ("random", "adversarial")}
    return [
        POPE(files=files, images=images, suffix=""),
        Captions(file=folder / "captions.jsonl", images=images, objects=folder / "objects.txt"),
    ]


def trainer_in(folder: Path, callbacks, **settings) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "logger": CSVLogger(folder, name="", version="run"),
            "default_root_dir": folder,
            "callbacks": callbacks,
            "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **settings,
        }
    )


def fit(folder: Path, callbacks, model=None, *, ckpt_path=None, validation=False, **settings):
    seed_everything(0, verbose=False)
    model = model or Brightness()
    trainer = trainer_in(folder, callbacks, **settings)
    trainer.fit(model, loader(shuffle=True), loader() if validation else None, ckpt_path=ckpt_path)
    return trainer, model


def samples(run: Path, label: str, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / "samples" / label / f"{name}.jsonl").read_text().splitlines()]


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


def test_the_run_ends_with_a_table_and_where_everything_is(tmp_path, capsys):
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    with pytest.warns(UserWarning, match="exists and is not empty"):
        fit(tmp_path, [Evaluate(evals=evaluations(tmp_path))])
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "pope/mean/yes_ratio" in line]
    assert "100.0 %" in line
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
    evaluations(tmp_path)
    item = {
        "question_type": "other",
        "image_id": "20",
        "image_src": "20.png",
        "image_content": [],
        "question": "Describe it.",
        "gt_answer": "",
    }
    (tmp_path / "mmhal.json").write_text(json.dumps([item]))
    trainer = trainer_in(tmp_path, [Evaluate(evals=[MMHal(file=tmp_path / "mmhal.json", images=tmp_path / "images")])])
    trainer.test(Brightness(), loader(), verbose=False)
    (row,) = samples(tmp_path / "run", "policy", "mmhal")
    assert (row["reply"], row["judged"]) == ("a lamp", False)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["after"] == {}
    assert not trainer.callback_metrics


def test_a_mistake_in_a_file_shows_before_there_is_a_run(tmp_path):
    evals = evaluations(tmp_path)
    (tmp_path / "images" / "60.png").unlink()
    with pytest.raises(ValueError, match=r"random\.json, line 2: no image '60\.png'"):
        Evaluate(evals=evals)


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
    ):
        with pytest.raises(ValueError, match=complaint):
            Evaluate(**settings)


def two_epochs_in(folder: Path, devices: int) -> None:
    callback = Evaluate(evals=evaluations(folder))
    model = Brightness(slope=5.0)
    strategy = "ddp" if devices > 1 else "auto"
    trainer = trainer_in(folder, [callback], devices=devices, strategy=strategy, max_epochs=1)
    trainer.fit(model, loader())
    assert max(model.asked.values()) == 2
    (folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps([callback.history, len(model.asked)]))


def test_two_ranks_share_the_questions_and_come_to_the_metrics_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    two_epochs_in(one, devices=1)
    done = subprocess.run([sys.executable, __file__, str(two), "2"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (alone, asked_alone), (first, asked_first), (second, asked_second) = (
        json.loads(path.read_text()) for path in (one / "rank-0.json", two / "rank-0.json", two / "rank-1.json")
    )
    assert asked_alone == asked_first + asked_second == 14
    assert (asked_first, asked_second) == (8, 6)  # four images and three, two questions each
    assert first == second
    assert first[0] == alone[0]
    assert samples(one / "run", "epoch-000", "pope")[0]["reply"] == "No"
    for name in ("pope", "captions"):
        rows = [samples(folder / "run", "epoch-000", name) for folder in (one, two)]
        assert [row | {"image": ""} for row in rows[0]] == [row | {"image": ""} for row in rows[1]]
    assert not list((two / "run").rglob(".*"))
    assert done.stdout.count("Everything is in") == 1


if __name__ == "__main__":
    two_epochs_in(Path(sys.argv[1]), int(sys.argv[2]))
