"""A callback that sends its own process signals, as a cluster or a user would."""

import os
import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Signaller(Callback):
    """Send signals, one with each of consecutive batches while it is computed, or all before the first.

    Args:
        names: Of the signals, such as SIGTERM.
        batch: With which batch of the run to begin, counted from 0.
        rank: Whose process.
        hook: ``setup`` or ``on_train_start``: send them there.
    """

    def __init__(self, *, names: list[str], batch: int = 0, rank: int = 0, hook: str | None = None) -> None:
        self.rank, self.hook = rank, hook
        self.numbers = {batch + at: signal.Signals[name] for at, name in enumerate(names)}
        self.seen = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.send("setup")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.send("on_train_start")

    def send(self, hook: str) -> None:
        for number in self.numbers.values() if hook == self.hook else ():
            os.kill(os.getpid(), number)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if self.hook is None and self.seen in self.numbers and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.numbers[self.seen])
        self.seen += 1
