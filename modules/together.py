"""What cannot be trained together, said before anything is loaded: each with the reason and a way that works."""

from typing import TYPE_CHECKING

from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.optim import Optimizer

from synthalign.dpo.reference import FrozenCopy

if TYPE_CHECKING:  # it imports this file
    from synthalign.modules.dpo import DPOModule

WAYS = "auto, ddp, model_parallel (FSDP2), fsdp"


def check_together(module: "DPOModule", strategy: Strategy | None, *, training: bool) -> None:
    """Refuse settings that each are possible, but not with one another.

    Args:
        module: Its network is not loaded yet.
        strategy: The trainer's; None outside of one.
        training: Whether the policy will be trained, not only evaluated.

    Raises:
        ValueError: In one line: what, why, and what to take instead.
    """
    sharded = isinstance(strategy, FSDPStrategy | ModelParallelStrategy)
    known = sharded or isinstance(strategy, DDPStrategy | SingleDeviceStrategy)
    if strategy is not None and (not known or isinstance(strategy, DeepSpeedStrategy)):
        raise ValueError(f"{type(strategy).__name__} was never tried with DPOModule: trainer.strategy may be {WAYS}")
    if strategy is not None and isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            "a strategy that spawns or forks its ranks leaves the trained state in them when they end: "
            "take trainer.strategy ddp, which starts the command line again for every rank"
        )
    if module.quantization is None:
        return
    if sharded:
        raise ValueError(
            f"quantised weights ({module.quantization}) are packed in a type of their own, which this strategy does "
            "not spread over ranks: take trainer.strategy ddp (every rank holds the model, nf4 at about a quarter of "
            "bfloat16's size), or keep the strategy, with quantization: null"
        )
    if training and module.lora is None and module.adapter is None:
        raise ValueError(
            f"quantised weights ({module.quantization}) are constants and cannot be trained: give lora, or train all "
            "weights with quantization: null"
        )
    if training and isinstance(module.reference, FrozenCopy):
        raise ValueError(
            f"a frozen copy of a quantised policy ({module.quantization}) would take memory for nothing: its adapters "
            "off, it is its own reference (synthalign.dpo.reference.AdaptersOff, or Cached)"
        )


def check_optimizer(optimizer: Optimizer, strategy: Strategy | None) -> None:
    """Refuse an optimizer that does not understand shares of weights.

    Raises:
        ValueError: It is of bitsandbytes, and the weights are spread over ranks.
    """
    kind = type(optimizer)
    if kind.__module__.startswith("bitsandbytes.") and isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        raise ValueError(
            f"{kind.__name__} of bitsandbytes keeps its state in blocks of whole weights, and this strategy spreads "
            "them over ranks: take torch.optim.AdamW, whose state is spread with them, or trainer.strategy ddp"
        )
