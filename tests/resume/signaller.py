"""A callback that sends its own process a signal in the midst of a step, as a cluster or a user would."""

import os
import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Signaller(Callback):
    """Send a signal while a batch is computed.

    Args:
        name: Of the signal, such as SIGTERM.
        batch: Which of the run, counted from 0.
        rank: Whose process.
        twice: Send it again with the batch after.
    """

    def __init__(self, *, name: str, batch: int, rank: int = 0, twice: bool = False) -> None:
        self.number, self.rank = signal.Signals[name], rank
        self.batches = {batch, batch + 1} if twice else {batch}
        self.seen = 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if self.seen in self.batches and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)
        self.seen += 1
