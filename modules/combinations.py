"""What cannot be combined, refused before anything is loaded: each with the reason and a way that works."""

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

from synthalign.dpo.reference import AdaptersOff, FrozenCopy, Reference
from synthalign.weights import Quantization

WAYS = "auto, ddp, model_parallel (FSDP2), fsdp"


def check_strategy(strategy: Strategy | None) -> None:
    """Refuse a strategy under which a DPOModule would learn something else, or leave nothing behind.

    Args:
        strategy: The trainer's; None outside of one.

    Raises:
        ValueError: In one line: what, why, and what to take instead.
    """
    if strategy is None:
        return
    kind = type(strategy)
    if isinstance(strategy, ModelParallelStrategy) and strategy._device_mesh is not None:  # else it is too early to say
        num_batches = strategy.device_mesh["data_parallel"].size()
        if num_batches < strategy.world_size:
            raise ValueError(
                f"this {kind.__name__} means {strategy.world_size} ranks to share {num_batches} batches: take "
                "trainer.strategy model_parallel by its name, in which every rank has its own"
            )
    if kind is FSDPStrategy:
        raise ValueError(
            "Lightning's FSDPStrategy does not know which parts of a vision-language model to spread: take "
            "trainer.strategy model_parallel, or fsdp by its name"
        )
    known = isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DDPStrategy | SingleDeviceStrategy)
    if not known or isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(f"{kind.__name__} was never tried with DPOModule: trainer.strategy may be {WAYS}")
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            "a strategy that spawns or forks its ranks leaves the trained state in them when they end: "
            "take trainer.strategy ddp, which starts the command line again for every rank"
        )


def check_combination(
    *,
    quantization: Quantization | None,
    adapters: bool,
    reference: Reference,
    sharded: bool,
    training: bool,
    checkpoint_base: bool = False,
) -> None:
    """Refuse settings of a DPOModule that each are possible, but not with one another.

    Args:
        quantization: Of the policy.
        adapters: Whether it has any.
        reference: Where the reference's log-probs come from.
        sharded: Whether the weights are to be spread over ranks.
        training: Whether the policy will be trained, not only evaluated.
        checkpoint_base: Whether checkpoints are to hold the frozen weights.

    Raises:
        ValueError: In one line: what, why, and what to take instead.
    """
    if sharded and checkpoint_base and training:
        raise ValueError(
            "checkpoint_base gathers no weights that are spread over ranks: leave it off, and have the policy whole "
            "with `synthalign export --merged`"
        )
    if training and not adapters and quantization is None and isinstance(reference, AdaptersOff):
        raise ValueError(
            "without adapters the policy does not stay its own reference: take synthalign.dpo.reference.Cached "
            "(log-probs computed once, kept on disk) or synthalign.dpo.reference.FrozenCopy (a second model in memory)"
        )
    if quantization is None:
        return
    if sharded:
        raise ValueError(
            f"quantised weights ({quantization}) are packed in a type of their own, which this strategy does "
            "not spread over ranks: take trainer.strategy ddp (every rank holds the model, nf4 at about a quarter of "
            "bfloat16's size), or keep the strategy, with quantization: null"
        )
    if training and not adapters:
        raise ValueError(
            f"quantised weights ({quantization}) are constants and cannot be trained: give lora, or train all "
            "weights with quantization: null"
        )
    if training and isinstance(reference, FrozenCopy):
        raise ValueError(
            f"a frozen copy of a quantised policy ({quantization}) would take memory for nothing: its adapters "
            "off, it is its own reference (synthalign.dpo.reference.AdaptersOff, or Cached)"
        )


def check_optimizer(optimizer: Optimizer, *, sharded: bool) -> None:
    """Refuse an optimizer that does not understand shares of weights.

    Raises:
        ValueError: It is of bitsandbytes, and the weights are spread over ranks.
    """
    kind = type(optimizer)
    if sharded and kind.__module__.startswith("bitsandbytes."):
        raise ValueError(
            f"{kind.__name__} of bitsandbytes keeps its state in blocks of whole weights, and this strategy spreads "
            "them over ranks: take torch.optim.AdamW, whose state is spread with them, or trainer.strategy ddp"
        )
