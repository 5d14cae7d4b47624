"""Real runs of a small policy on drawn pairs, in float64 so that what is equal shows."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo.drawn_pairs import FIT, Pair, draw
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from synthalign.dpo.batch import PairTokens, collate
from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import LoRA
from synthalign.modules import DPOModule
from synthalign.vlm import Chat


def encode(chat: Chat, pair: Pair) -> PairTokens:
    chosen, rejected = (chat.response_ids(pair.question, answer) for answer in (pair.chosen, pair.rejected))
    return PairTokens(pair.id, draw(pair.drawing), pair.drawing, pair.question, chosen, rejected)


@pytest.fixture
def make_module(tiny_llava: Path) -> Callable[..., DPOModule]:
    def make(**settings: Any) -> DPOModule:
        defaults: dict[str, Any] = {
            "policy": str(tiny_llava),
            "loss": DPO(beta=0.5),
            "lora": LoRA(r=4, alpha=8),
            "dtype": "float64",
            "optimizer": partial(torch.optim.AdamW, lr=1e-2),
        }
        module = DPOModule(**(defaults | settings))
        seed_everything(0)
        module.configure_model()
        return module

    return make


@pytest.fixture(scope="session")
def eight(tiny_llava: Path) -> Callable[..., DataLoader]:
    """Give a loader of eight pairs in their order."""
    chat = Chat(model=str(tiny_llava))
    pairs = [encode(chat, pair) for pair in FIT]

    def load(batch_size: int) -> DataLoader:
        return DataLoader(pairs, batch_size=batch_size, collate_fn=partial(collate, chat=chat))  # type: ignore[arg-type]

    return load


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(name: str = "run", **settings: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "logger": CSVLogger(tmp_path, name="", version=name),
            "log_every_n_steps": 1,
            "max_epochs": 1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        return Trainer(**(defaults | settings))

    return make


@pytest.fixture
def logged(tmp_path: Path) -> Callable[..., list[float]]:
    def read(metric: str, name: str = "run") -> list[float]:
        """The values of one metric in the order in which they were logged."""
        with (tmp_path / name / "metrics.csv").open() as file:
            return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]

    return read
