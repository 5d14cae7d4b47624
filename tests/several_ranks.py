"""What several ranks do for the tests of the callback; as a script it is the ranks: ``several_ranks.py FOLDER``.

In the folder are a tiny model ``llava`` and what ``write`` writes.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from brightness import SHADES, Brightness, Letters, chair, loader, mmhal, pope, trainer_in, write_files
from dpo.adapters import spread
from dpo.drawn_pairs import FOUR, draw
from forked import fork_ranks
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

from synthalign.callbacks.evaluate import Evaluate
from synthalign.dpo.batch import PairTokens, collate
from synthalign.dpo.layouts import Rows
from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import LoRA, load_policy
from synthalign.evals.pope import POPE
from synthalign.modules import DPOModule
from synthalign.vlm import Chat

SIZES = (7, 8, 1)
"""Images: uneven shares, and with one image ranks without any."""

WHY = "the judge at localhost:1 does not answer"


def share_questions(folder: Path, devices: int) -> None:
    """Evaluate before and after an epoch, test, and test with a judge that is gone for one rank of them."""
    strategy = "ddp" if devices > 1 else "auto"
    here = folder / f"ranks-{devices}"
    seen = {}
    for size in (*SIZES, "gone"):
        files, judge = folder / str(8 if size == "gone" else size), Letters()
        callback = Evaluate(evals=[pope(files), mmhal(files, judge), chair(files)])
        trainer = trainer_in(here / str(size), [callback], devices=devices, strategy=strategy, max_epochs=1)
        model = Brightness(slope=5.0)
        if size == 7:
            trainer.fit(model, loader())
            seen["history"] = callback.history
        elif size == "gone":
            judge.calls_until_down = 0 if trainer.global_rank == devices - 1 else 1000
            with pytest.raises(RuntimeError, match=WHY):
                trainer.test(model, loader(), verbose=False)
        else:
            trainer.test(model, loader(), verbose=False)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
        seen[str(size)] = {"asked": sum(model.asked.values()), "rated": judge.rated, "metrics": metrics}
    (here / f"rank-{trainer.global_rank}.json").write_text(json.dumps(seen))


DRAWINGS = ("red circle on white", "green square on black", "blue circle on white")
THINGS = ("circle", "square", "dog", "cup", "chair")


def aligned(folder: Path, **settings: Any) -> DPOModule:
    """A LLaVA with an adapter that does something, its weights spread over the ranks where the strategy says so."""
    return DPOModule(policy=str(folder / "llava"), loss=DPO(beta=0.5), adapter=str(folder / "adapter"), **settings)


def polls(folder: Path) -> list:
    """Five questions about the first image, three about the second, one about the third; and two about one image."""
    return [
        POPE(files={"a": folder / f"{name}.json"}, images=folder, max_new_tokens=tokens, name=name)
        for name, tokens in (("three", 6), ("one", 2))
    ]


def write(folder: Path) -> None:
    """Write the files of all evaluations."""
    for size in SIZES:
        write_files(folder / str(size), (*SHADES, 255)[:size])
    for drawing in DRAWINGS:
        draw(drawing).save(folder / f"{drawing}.png")
    for name, numbers in (("three", (5, 3, 1)), ("one", (2,))):
        rows = [
            {"image": f"{drawing}.png", "text": f"Is there a {thing}?", "label": "no" if thing == "dog" else "yes"}
            for drawing, number in zip(DRAWINGS, numbers, strict=False)
            for thing in THINGS[:number]
        ]
        numbered = [{"question_id": number, **row} for number, row in enumerate(rows)]
        (folder / f"{name}.json").write_text(json.dumps(numbered))


def share_weights(folder: Path, devices: int) -> None:
    """Test the base and the aligned model."""
    torch.set_num_threads(1)
    strategy = ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1) if devices > 1 else "auto"
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        callbacks=[Evaluate(evals=polls(folder))],
        logger=False,
        default_root_dir=folder / f"shards-{devices}",
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    trainer.test(aligned(folder, answer_batch_size=2), DataLoader([0]), verbose=False)  # type: ignore[arg-type]


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


def train(folder: Path, name: str, callbacks: list[Callback]) -> None:
    """Train on four pairs, one a step on each of two ranks, and write the losses of each."""
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    chat = Chat(model=str(folder / "llava"))
    losses = Losses()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        callbacks=[*callbacks, losses],
        logger=False,
        default_root_dir=folder / name,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        max_epochs=1,
    )
    pairs = []
    for pair in FOUR[trainer.global_rank :: 2]:
        chosen, rejected = (chat.response_ids(pair.question, answer) for answer in (pair.chosen, pair.rejected))
        pairs.append(PairTokens(pair.id, draw(pair.drawing), pair.drawing, pair.question, chosen, rejected))
    module = aligned(folder, layout=Rows(), fused=False)
    trainer.fit(module, DataLoader(pairs, batch_size=1, collate_fn=partial(collate, chat=chat)))  # type: ignore[arg-type]
    (folder / name / f"rank-{trainer.global_rank}.json").write_text(json.dumps(losses.values))


if __name__ == "__main__":
    here = Path(sys.argv[1])
    policy = load_policy(str(here / "llava"), lora=LoRA(r=4, alpha=8, dropout=0.2))
    spread(policy).save_pretrained(here / "adapter")
    for devices in (1, 2, 3):
        fork_ranks(devices, partial(share_questions, here, devices))
    for devices in (1, 2):
        fork_ranks(devices, partial(share_weights, here, devices))
    for name, callbacks in (("alone", []), ("watched", [Evaluate(evals=polls(here), every_n_steps=1)])):
        (here / name).mkdir()
        fork_ranks(2, partial(train, here, name, callbacks))
