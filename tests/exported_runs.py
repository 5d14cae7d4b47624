"""Runs to export, as a fit leaves them, written in a moment; what a fit answers itself; what the command refuses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dpo.adapters import spread
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from synthalign.cli import main
from synthalign.dpo.policy import LoRA, load_policy, save_adapter

ALPHA, RANK = 8, 4
NEW_TOKENS = 16


class Answers(Callback):
    """Asks the policy when its training has ended, and writes down what it says.

    Args:
        image: A file.
        questions: About it.
        out: File to write.
    """

    def __init__(self, image: str, questions: list[str], out: str) -> None:
        self.image, self.questions, self.out = image, questions, out

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        policy: Any = pl_module
        policy.eval()
        image = Image.open(self.image)
        after = [one.text for one in self.ask(policy, image)]
        with policy.adapters_off():
            before = [one.text for one in self.ask(policy, image)]
        tokens = [greedy(policy.network, policy.chat.inputs([image], [question])) for question in self.questions]
        Path(self.out).write_text(json.dumps({"before": before, "after": after, "tokens": tokens}))

    def ask(self, policy: Any, image: Image.Image) -> Sequence[Any]:
        return policy.answer([image] * len(self.questions), self.questions, max_new_tokens=NEW_TOKENS)


@torch.no_grad()
def greedy(network: Any, inputs: Any) -> list[int]:
    said = network.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
    return said[0, inputs["input_ids"].shape[1] :].tolist()


def config(policy: Path | str, **arguments: Any) -> dict[str, Any]:
    """What config.yaml says of a run."""
    lora = {"r": RANK, "alpha": ALPHA, "dropout": 0.0, "target_modules": LoRA().target_modules}
    loss = {"class_path": "synthalign.dpo.losses.DPO", "init_args": {"beta": 0.5}}
    given: dict[str, Any] = {"policy": str(policy), "revision": None, "lora": lora, "adapter": None, "loss": loss}
    return {
        "seed_everything": 3,
        "trainer": {"max_epochs": 2, "callbacks": [{"class_path": "synthalign.callbacks.SaveAdapter"}]},
        "model": {"class_path": "synthalign.modules.DPOModule", "init_args": given | arguments},
        "data": {"class_path": "synthalign.datamodules.X", "init_args": {"pairs": "set/pairs.json", "batch_size": 2}},
    }


def write_config(run: Path, policy: Path | str, **arguments: Any) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config(policy, **arguments)), encoding="utf-8")
    return run


def write_run(run: Path, policy: Path, *, step: int = 7, **arguments: Any) -> Any:
    """Write a run whose adapter does something: its folder, and the same as a checkpoint. Give the network."""
    network = spread(load_policy(str(policy), lora=LoRA(r=RANK, alpha=ALPHA)))
    write_config(run, policy, **arguments)
    save_adapter(network, run / "adapter")
    trained = {name: one.detach() for name, one in network.named_parameters() if one.requires_grad}
    write_checkpoint(run / "checkpoints" / "best.ckpt", trained, step)
    return network


def write_checkpoint(path: Path, trained: dict[str, torch.Tensor], step: int) -> None:
    path.parent.mkdir(exist_ok=True)
    state = {f"network.{name}": one for name, one in trained.items()}
    torch.save({"state_dict": state, "global_step": step, "loops": {}, "epoch": 1}, path)


def refusal(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line that ``export`` ends in."""
    with pytest.raises(SystemExit) as stopped:
        main(["export", *map(str, args)])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == ""
    *before, line = said.err.splitlines()
    assert line.startswith("synthalign: error: ") and not any("Traceback" in one for one in before)
    return line
