"""A run that is broken off goes on as if nothing had happened; its checkpoint holds the adapter alone."""

import pytest
import torch
from dpo.drawn_pairs import write_set
from lightning.pytorch.callbacks import ModelCheckpoint

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


@pytest.fixture
def run(tmp_path, make_module, make_trainer):
    """Train for three epochs, from the start or from a checkpoint, and keep one of every step and every epoch."""
    pairs = str(write_set(tmp_path / "set"))

    def fit(name, ckpt_path=None, num_workers=0, limit_train_batches=None, **settings):
        module = make_module(schedule=WarmupCosine(warmup_ratio=0.2), **settings)
        data = SyntheticPreferenceDataModule(
            pairs=pairs, chat=module.chat, batch_size=2, seed=3, num_workers=num_workers
        )
        keepers = [
            ModelCheckpoint(tmp_path / name, filename="{step}", save_top_k=-1, every_n_train_steps=1),
            ModelCheckpoint(tmp_path / name, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
        ]
        trainer = make_trainer(
            name,
            max_epochs=EPOCHS,
            callbacks=keepers,
            enable_checkpointing=True,
            limit_train_batches=limit_train_batches,
        )
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    return fit


def test_a_checkpoint_holds_the_adapter_and_its_optimizer_and_nothing_of_the_base(run, tmp_path):
    trained = run("straight")
    checkpoint = torch.load(tmp_path / "straight" / "step=6.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == trained.keys()
    assert all(".lora_" in name for name in trained)
    (optimizer,) = checkpoint["optimizer_states"]
    moments = [state["exp_avg"].shape for state in optimizer["state"].values()]
    assert moments == [parameter.shape for parameter in trained.values()]
    last = torch.load(tmp_path / "straight" / f"step={STEPS}.ckpt", weights_only=True)
    assert all(torch.equal(last["state_dict"][name], trained[name]) for name in trained)


@pytest.mark.parametrize(
    ("checkpoint", "steps_done", "num_workers"),
    [("step=1", 1, 0), ("step=4", 4, 0), ("step=6", 6, 0), ("step=7", 7, 1), ("epoch=0", 4, 0), ("epoch=1", 8, 1)],
)
def test_resuming_ends_bit_for_bit_where_the_whole_run_does(checkpoint, steps_done, num_workers, run, tmp_path, logged):
    straight = run("straight")
    resumed = run("resumed", tmp_path / "straight" / f"{checkpoint}.ckpt", num_workers)
    losses = logged("train/loss", "straight")
    assert len(set(losses)) == STEPS
    assert logged("train/loss", "resumed") == losses[steps_done:]
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize(("checkpoint", "steps_done"), [("epoch=0", 3), ("step=3", 3), ("step=4", 4)])
def test_resuming_is_exact_where_epochs_are_cut_short(checkpoint, steps_done, run, tmp_path, logged):
    straight = run("straight", limit_train_batches=3)
    resumed = run("resumed", tmp_path / "straight" / f"{checkpoint}.ckpt", limit_train_batches=3)
    assert logged("train/loss", "resumed") == logged("train/loss", "straight")[steps_done:]
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_checkpoint_of_other_adapters_is_refused(run, tmp_path):
    run("straight")
    with pytest.raises(ValueError, match=r"the checkpoint's adapter is not on the layers of this run's \(.*lora_"):
        run("other", tmp_path / "straight" / "step=4.ckpt", lora=LoRA(r=4, target_modules=r".*q_proj"))
