"""Keeps the trained adapter as a PEFT folder."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from synthalign.dpo.policy import save_adapter


class SaveAdapter(Callback):
    """Save the policy's adapter after every epoch, as a PEFT folder that plain transformers and peft load.

    The folder is ``adapter`` in the run's folder; each epoch replaces it once the new one is whole. Where all weights
    are trained, it is ``model`` instead, with the whole model and its processor, to be named as a policy.

    Args:
        name: Name of the adapter's folder.
    """

    def __init__(self, *, name: str = "adapter") -> None:
        self.name = name
        self._saved: int | None = None  # optimizer steps of the adapter that this run saved last

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a run, which has saved nothing."""
        self._saved = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch."""
        self._save(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where no epoch ended: a run may go on from the very last step."""
        if self._saved != trainer.global_step:
            self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save on one rank; the others have the same adapter, or give it their shares."""
        self._saved = trainer.global_step
        run = trainer.log_dir or trainer.default_root_dir  # asks all ranks
        policy: Any = pl_module
        weights = policy.gathered_weights()  # takes all ranks
        if trainer.is_global_zero:
            if hasattr(policy.network, "peft_config"):
                save_adapter(policy.network, Path(run) / self.name, weights=weights)
            else:
                save_adapter(policy.network, Path(run) / "model", weights=weights, processor=policy.chat.processor)
