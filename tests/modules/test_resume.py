"""A run that is broken off goes on as if nothing had happened, dropout and all; its checkpoint holds the adapter."""

import csv
import random
from pathlib import Path

import numpy
import pytest
import torch
from dpo.drawn_pairs import write_set
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from synthalign.callbacks.random_states import RandomStates, random_states, set_random_states
from synthalign.datamodules import SyntheticPreferenceDataModule
from synthalign.dpo.policy import LoRA
from synthalign.dpo.schedules import WarmupCosine

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),  # the frozen base is meant to be
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # nothing is held out
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),  # the run's folder: it holds dropped.jsonl
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # a resumed run keeps its own checkpoints
]

# 8 pairs in batches of 2: epochs of 4 steps
EPOCHS, STEPS = 3, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("resume")
    write_set(here / "set")
    return here


@pytest.fixture
def run(folder, make_module, make_trainer):
    """Train for three epochs, from the start or from a checkpoint, and keep one of every step and every epoch."""

    def fit(name, ckpt_path=None, num_workers=0, limit_train_batches=None, val_share=0.0, **settings):
        settings = {"lora": LoRA(r=4, alpha=8, dropout=0.2)} | settings
        module = make_module(schedule=WarmupCosine(warmup_ratio=0.2), **settings)
        data = SyntheticPreferenceDataModule(
            pairs=str(folder / "set" / "pairs.json"),
            chat=module.chat,
            batch_size=2,
            seed=3,
            num_workers=num_workers,
            val_share=val_share,
        )
        keepers = [
            RandomStates(),
            ModelCheckpoint(folder / name, filename="{step}", save_top_k=-1, every_n_train_steps=1),
            ModelCheckpoint(folder / name, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
        ]
        trainer = make_trainer(
            logger=CSVLogger(folder, name="", version=name),
            max_epochs=EPOCHS,
            callbacks=keepers,
            enable_checkpointing=True,
            limit_train_batches=limit_train_batches,
        )
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    return fit


@pytest.fixture(scope="module")
def trained():
    return {}


@pytest.fixture
def straight(run, folder, trained):
    """Train without a break, once for each of the settings; give the folder and the adapter."""

    def train(**settings):
        name = "-".join(["straight", *(f"{key}={value}" for key, value in settings.items())])
        if name not in trained:
            trained[name] = run(name, **settings)
        return folder / name, trained[name]

    return train


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


def steps_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_holds_the_adapter_and_its_optimizer_and_nothing_of_the_base(straight):
    here, adapter = straight()
    checkpoint = torch.load(here / "step=6.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == adapter.keys()
    assert all(".lora_" in name for name in adapter)
    (optimizer,) = checkpoint["optimizer_states"]
    moments = [state["exp_avg"].shape for state in optimizer["state"].values()]
    assert moments == [parameter.shape for parameter in adapter.values()]
    assert same(torch.load(here / f"step={STEPS}.ckpt", weights_only=True)["state_dict"], adapter)


@pytest.mark.parametrize(
    ("checkpoint", "steps_done", "num_workers"),
    [("step=1", 1, 0), ("step=4", 4, 0), ("step=6", 6, 0), ("step=7", 7, 1), ("epoch=0", 4, 0), ("epoch=1", 8, 1)],
)
def test_resuming_ends_bit_for_bit_where_the_whole_run_does(checkpoint, steps_done, num_workers, run, straight, folder):
    here, adapter = straight()
    resumed = run(f"resumed-{checkpoint}", here / f"{checkpoint}.ckpt", num_workers)
    assert len(set(losses(here))) == STEPS
    assert losses(folder / f"resumed-{checkpoint}") == losses(here)[steps_done:]
    assert same(resumed, adapter)


@pytest.mark.parametrize(("checkpoint", "steps_done"), [("epoch=0", 3), ("step=3", 3), ("step=4", 4)])
def test_resuming_is_exact_where_epochs_are_cut_short(checkpoint, steps_done, run, straight, folder):
    here, adapter = straight(limit_train_batches=3)
    resumed = run(f"cut-{checkpoint}", here / f"{checkpoint}.ckpt", limit_train_batches=3)
    assert losses(folder / f"cut-{checkpoint}") == losses(here)[steps_done:]
    assert same(resumed, adapter)


@pytest.mark.parametrize("checkpoint", ["step=1", "epoch=0"])
def test_a_validation_between_epochs_draws_nothing(checkpoint, run, straight, folder):
    here, adapter = straight(val_share=0.4)
    resumed = run(f"validated-{checkpoint}", here / f"{checkpoint}.ckpt", val_share=0.4)
    assert losses(folder / f"validated-{checkpoint}") == losses(here)[steps_of(here / f"{checkpoint}.ckpt") :]
    assert same(resumed, adapter)


def test_random_states_are_plain_and_come_back(tmp_path):
    cpu = torch.device("cpu")
    torch.manual_seed(5)
    random.seed(5)
    numpy.random.seed(5)
    random.gauss(0, 1)  # half of a pair is kept for the next call
    numpy.random.normal()
    torch.save(random_states(cpu), tmp_path / "states")

    def draw():
        ours = [random.random(), random.gauss(0, 1), float(numpy.random.rand()), float(numpy.random.normal())]
        return ours + torch.rand(3).tolist()

    drawn = draw()
    assert draw() != drawn
    set_random_states(torch.load(tmp_path / "states", weights_only=True), cpu)
    assert draw() == drawn


def saved_by_two(checkpoint: Path, copy: Path) -> Path:
    """The same checkpoint with the random states of two ranks, as two would have saved it."""
    saved = torch.load(checkpoint, weights_only=True)
    torch.save(saved | {"random_states": saved["random_states"] * 2}, copy)
    return copy


@pytest.mark.parametrize("checkpoint", ["step=4", "epoch=0"])
def test_another_number_of_ranks_goes_on_after_an_epoch_and_says_what_differs(
    checkpoint, run, straight, tmp_path, capsys
):
    here, _ = straight()
    run(f"fewer-{checkpoint}", saved_by_two(here / f"{checkpoint}.ckpt", tmp_path / "two.ckpt"))
    said = [line for line in capsys.readouterr().err.splitlines() if "processes" in line]
    assert len(said) == 1 and said[0].startswith("synthalign: the checkpoint was saved by 2 processes and 1 go on")


def test_another_number_of_ranks_does_not_go_on_within_an_epoch(run, straight, tmp_path):
    here, _ = straight()
    with pytest.raises(ValueError, match=r"^the checkpoint was saved within an epoch by 2 processes, and 1 cannot"):
        run("refused", saved_by_two(here / "step=6.ckpt", tmp_path / "two.ckpt"))


def test_a_checkpoint_can_hold_the_base_too_and_goes_on_the_same(run, straight, folder):
    here, adapter = straight()
    whole, trained = straight(checkpoint_base=True)
    assert same(trained, adapter)
    saved = torch.load(whole / "step=6.ckpt", weights_only=True)["state_dict"]
    assert adapter.keys() < saved.keys() and any("vision_tower" in name for name in saved)
    for checkpoint in (whole, here):
        assert same(run(f"from-{checkpoint.name}", checkpoint / "step=6.ckpt", checkpoint_base=True), adapter)


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (
            LoRA(r=4, target_modules=r".*q_proj"),
            r"the checkpoint's adapter is not on the layers of this run's \(.*lora_",
        ),
        (LoRA(r=2), r"lora_A.*is of shape \(4, 32\) and this run's of \(2, 32\)"),
    ],
)
def test_a_checkpoint_of_other_adapters_is_refused(lora, said, run, straight):
    here, _ = straight()
    with pytest.raises(ValueError, match=said):
        run(f"other-{lora.r}", here / "step=4.ckpt", lora=lora)
