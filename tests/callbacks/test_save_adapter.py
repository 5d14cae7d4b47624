"""The adapter's folder: there after every epoch, of the run's own, whole, and what plain peft reads."""

from functools import partial
from pathlib import Path

import pytest
import torch
from dpo.drawn_pairs import write_set
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from synthalign.callbacks import SaveAdapter
from synthalign.datamodules import SyntheticPreferenceDataModule
from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import LoRA
from synthalign.modules import DPOModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),  # the frozen base is meant to be
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # nothing is held out
]

FILES = ["adapter_config.json", "adapter_model.safetensors"]


class Watch(Callback):
    """Notes what is saved at the end of each epoch, and what the module holds then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: list[dict[str, torch.Tensor]] = []
        self.held: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.saved.append(load_file(self.folder / "adapter_model.safetensors"))
        own = {n.removeprefix("network."): p.detach() for n, p in pl_module.named_parameters() if p.requires_grad}
        self.held.append({name.replace(".default", ""): value.clone() for name, value in own.items()})


@pytest.fixture
def fit(tmp_path, tiny_llava):
    pairs = str(write_set(tmp_path / "set"))

    def run(*callbacks, logger=False, **settings):
        module = DPOModule(
            policy=str(tiny_llava),
            loss=DPO(),
            lora=LoRA(r=2, alpha=4),
            optimizer=partial(torch.optim.AdamW, lr=0.01),
        )
        trainer = Trainer(
            accelerator="cpu",
            callbacks=list(callbacks),
            logger=logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path / "root",
            **settings,
        )
        trainer.fit(module, SyntheticPreferenceDataModule(pairs=pairs, chat=module.chat, batch_size=4))
        return module

    return run


def test_every_epoch_replaces_the_folder_by_the_adapter_as_it_is_then(fit, tmp_path):
    watch = Watch(tmp_path / "root" / "adapter")
    fit(SaveAdapter(), watch, max_epochs=3)
    assert len(watch.saved) == 3
    for saved, held in zip(watch.saved, watch.held, strict=True):
        assert saved.keys() == held.keys()
        assert all(torch.equal(saved[name], held[name]) for name in held)
    name = next(name for name in watch.saved[0] if "lora_B" in name)
    assert not torch.equal(watch.saved[0][name], watch.saved[1][name])
    assert sorted(path.name for path in watch.folder.iterdir()) == FILES
    assert [path.name for path in watch.folder.parent.iterdir()] == ["adapter"]


def test_it_goes_into_the_folder_of_the_run_under_its_own_name(fit, tmp_path):
    logger = CSVLogger(tmp_path / "logs", name="", version="fit-2")
    fit(SaveAdapter(name="lora"), logger=logger, max_epochs=1, log_every_n_steps=1)
    assert sorted(path.name for path in (tmp_path / "logs" / "fit-2" / "lora").iterdir()) == FILES


def test_a_run_that_ends_inside_an_epoch_saves_too(fit, tmp_path):
    module = fit(SaveAdapter(), max_epochs=5, max_steps=1)
    saved = load_file(tmp_path / "root" / "adapter" / "adapter_model.safetensors")
    own = {name: p for name, p in module.network.named_parameters() if p.requires_grad}
    assert all(torch.equal(saved[name.replace(".default", "")], p) for name, p in own.items())


def test_plain_peft_loads_it_onto_the_plain_model(fit, tmp_path, tiny_llava):
    module = fit(SaveAdapter(), max_epochs=1)
    base = AutoModelForImageTextToText.from_pretrained(tiny_llava)
    loaded = PeftModel.from_pretrained(base, tmp_path / "root" / "adapter")
    assert loaded.peft_config["default"].r == 2 and loaded.peft_config["default"].lora_alpha == 4
    ours = {name: p for name, p in module.network.named_parameters() if ".lora_" in name}
    theirs = {name: p for name, p in loaded.named_parameters() if ".lora_" in name}
    assert ours.keys() == theirs.keys() and len(ours) == 28
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
