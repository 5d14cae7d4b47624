"""A run that is broken off goes on as if nothing had happened, dropout and all; its checkpoint holds the adapter."""

import csv
import random
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from dpo.drawn_pairs import write_set
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from synthalign.callbacks.random_states import RandomStates, random_states, set_random_states, try_random_states
from synthalign.datamodules import SyntheticPreferenceDataModule
from synthalign.dpo.policy import LoRA
from synthalign.dpo.schedules import WarmupCosine
from synthalign.training.best import BestCheckpoints

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


class Scored(Callback):
    """Give monitors a score of every epoch, as Evaluate does: also of one whose end a run that goes on leaves out."""

    def __init__(self, scores):
        self.scores = scores

    def on_train_start(self, trainer, pl_module):
        if 0 < trainer.current_epoch:
            self.tell(trainer, trainer.current_epoch - 1)

    def on_train_epoch_end(self, trainer, pl_module):
        self.tell(trainer, trainer.current_epoch)

    def tell(self, trainer, epoch):
        trainer.callback_metrics["score"] = torch.tensor(self.scores[epoch])


@pytest.fixture
def run(folder, make_module, make_trainer):
    """Train for three epochs, from the start or from a checkpoint, and keep one of every step and every epoch."""

    def fit(
        name, ckpt_path=None, num_workers=0, limit_train_batches=None, val_share=0.0, scores=None, top=1, **settings
    ):
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
        if scores is not None:
            best = {"monitor": "score", "mode": "max", "save_top_k": top}
            name_of = "best" if top == 1 else "best-{epoch}"
            keepers = [Scored(scores), ModelCheckpoint(folder / name, filename=name_of, **best), *keepers]
            keepers.append(BestCheckpoints())
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


def kept_best(run: Path) -> dict[str, tuple[int, float, dict]]:
    """What the best checkpoints of a folder hold: step, score, weights."""
    found = {}
    for path in sorted(run.glob("best*.ckpt")):
        saved = torch.load(path, weights_only=True)
        (state,) = [state for state in saved["callbacks"].values() if state.get("monitor")]
        found[path.name] = (saved["global_step"], state["current_score"].item(), saved["state_dict"])
    return found


@pytest.mark.parametrize(
    ("scores", "checkpoint", "top"),
    [
        ((0.25, 0.75, 0.5), "epoch=1", 1),  # the best is of the part before
        ((0.25, 0.75, 0.5), "step=8", 1),  # from an epoch's last step: its end, where it is saved, is left out
        ((0.25, 0.5, 0.75), "step=6", 1),  # of the part after
        ((0.5, 0.75, 0.625), "epoch=1", 2),
        ((0.5, 0.25, 0.125), "epoch=1", -1),
    ],
)
def test_the_best_checkpoint_is_that_of_the_whole_run(scores, checkpoint, top, run, straight, folder):
    here, _ = straight(scores=scores, top=top)
    before = {path: path.read_bytes() for path in here.iterdir()}
    name = f"best-{here.name}-{checkpoint}"
    run(name, here / f"{checkpoint}.ckpt", scores=scores, top=top)
    found, expected = kept_best(folder / name), kept_best(here)
    if top < 0:  # those of the part before are in their own folder, where they are kept; but the best is here as well
        del expected["best-epoch=1.ckpt"]
    assert found.keys() == expected.keys()
    for file, (step, score, weights) in expected.items():
        assert found[file][:2] == (step, score) and same(found[file][2], weights)
    assert {path: path.read_bytes() for path in here.iterdir()} == before


def test_the_best_checkpoint_is_found_where_the_runs_folder_was_moved(run, straight, folder):
    scores = (0.25, 0.75, 0.5)
    here, _ = straight(scores=scores)
    moved = Path(shutil.copytree(here, folder / "moved"))
    saved = torch.load(moved / "epoch=1.ckpt", weights_only=True)
    for state in saved["callbacks"].values():
        if state.get("monitor"):
            state |= {"dirpath": "gone", "best_k_models": {"gone/best.ckpt": torch.tensor(0.75)}}
    torch.save(saved, moved / "epoch=1.ckpt")
    run("from-moved", moved / "epoch=1.ckpt", scores=scores)
    assert kept_best(folder / "from-moved")["best.ckpt"][:2] == (8, 0.75)


@pytest.mark.parametrize("why", ["gone", "replaced"])
def test_a_best_checkpoint_that_is_no_longer_there_is_named_and_does_not_count(why, run, straight, folder, capsys):
    here, _ = straight(scores=(0.25, 0.5, 0.75))
    before = Path(shutil.copytree(here, folder / why))
    if why == "gone":
        (here / "best.ckpt").rename(here / "elsewhere.ckpt")
        (before / "best.ckpt").unlink()
    capsys.readouterr()
    run(f"after-{why}", before / "epoch=1.ckpt", scores=(0.25, 0.5, 0.375))
    if why == "gone":
        (here / "elsewhere.ckpt").rename(here / "best.ckpt")
    assert "best.ckpt is gone or was replaced: the best so far is chosen without it" in capsys.readouterr().err
    assert kept_best(folder / f"after-{why}")["best.ckpt"][:2] == (12, 0.375)


@pytest.mark.parametrize("damage", ["left out", None, "x", torch.ones(3)], ids=["left out", "none", "text", "floats"])
def test_damaged_random_states_are_told(damage):
    for part in ("torch", "python", "numpy", "cuda"):
        states = random_states(torch.device("cpu"))
        try_random_states(states)
        if damage == "left out":
            del states[part]
        else:
            states[part] = damage
        if part != "cuda" or damage is not None:  # which is nothing without a GPU
            with pytest.raises(ValueError, match=r"^its random_states are damaged$"):
                try_random_states(states)


@pytest.mark.parametrize("states", [[None], "x"])
def test_damaged_random_states_are_refused_before_training(states, run, straight, tmp_path):
    here, _ = straight()
    saved = torch.load(here / "step=6.ckpt", weights_only=True)
    torch.save(saved | {"random_states": states}, tmp_path / "damaged.ckpt")
    with pytest.raises(ValueError, match=r"^its random_states are damaged$"):
        run(f"damaged-{type(states).__name__}", tmp_path / "damaged.ckpt")


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
