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

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save on one rank; the others have the same adapter."""
        run = trainer.log_dir or trainer.default_root_dir  # asks all ranks
        if trainer.is_global_zero:
            policy: Any = pl_module
            if hasattr(policy.network, "peft_config"):
                save_adapter(policy.network, Path(run) / self.name)
            else:
                save_adapter(policy.network, Path(run) / "model", processor=policy.chat.processor)
