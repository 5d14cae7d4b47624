"""A callback that writes down, for every rank, what it made and which pairs it trained on."""

import json
from pathlib import Path
from typing import Any

from dpo.parts import ASKED
from lightning.pytorch import Callback, LightningModule, Trainer


class Witness(Callback):
    """Write ``rank-<n>.json``: {"made": calls of each part, "steps": ids of each batch}."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.steps.append(batch.ids)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seen = {"made": dict(ASKED), "steps": self.steps}
        Path(f"rank-{trainer.global_rank}.json").write_text(json.dumps(seen), encoding="utf-8")
