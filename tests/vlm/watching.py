"""What a fit through the command line leaves to be looked at."""

from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer


class Watch(Callback):
    """Keeps the gradients' largest entries of every optimizer step, and the network at the end."""

    last: ClassVar["Watch | None"] = None  # the latest one that saw a fit

    def __init__(self) -> None:
        self.gradients: list[dict[str, float]] = []
        self.network: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Watch.last = self

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        network: Any = pl_module.network
        trained = {name: one for name, one in network.named_parameters() if one.requires_grad}
        self.gradients.append(
            {name: 0.0 if one.grad is None else float(one.grad.abs().max()) for name, one in trained.items()}
        )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.network = pl_module.network
