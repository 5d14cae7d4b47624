"""A callback that kills one rank: within a step, or while its policy answers an evaluation."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Dying(Callback):
    """Kill a rank in its third step, or in the first evaluation after the start, and note when.

    Args:
        rank: Which.
        when: ``training`` or ``evaluating``.
    """

    def __init__(self, *, rank: int, when: str) -> None:
        self.rank, self.when = rank, when

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank != self.rank or self.when != "evaluating":
            return
        policy: Any = pl_module
        answer = policy.answer

        def dies(*args: Any, **kwargs: Any) -> Any:
            if trainer.global_step:
                self.die()
            return answer(*args, **kwargs)

        policy.answer = dies

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if trainer.global_rank == self.rank and self.when == "training" and trainer.global_step == 2:
            self.die()

    def die(self) -> None:
        Path("died").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
