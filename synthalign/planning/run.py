"""A run as far as its size goes, and what it takes: the step counted on fakes, put together for a device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.families import trains_encoder
from synthalign.dpo.layouts import Layout, Rows
from synthalign.dpo.policy import LoRA
from synthalign.dpo.sharding import units_of
from synthalign.plan import (
    SHARDED,
    Memory,
    OptimizerCost,
    Spread,
    Traffic,
    memory_of,
    optimizer_cost,
    traffic_of,
    weigh,
)
from synthalign.plan.memory import Counted, Shares
from synthalign.planning.step import ReferenceKind, count, shares_of, skeleton
from synthalign.vlm.attention import NotCarriedError
from synthalign.weights import DType, Quantization


@dataclass(frozen=True, kw_only=True)
class Run:
    """What of a run's configuration decides on bytes and operations.

    Args:
        config: Of the policy, a configuration of transformers.
        dtype: Of the frozen weights; auto: as they were saved.
        quantization: Of the decoder's layers.
        lora: Adapters; None to train the language model itself.
        fused: As DPOModule has it.
        gradient_checkpointing: As DPOModule has it.
        layout: Of a batch.
        reference: Where its log-probs come from in a step.
        autocast: The type that mixed precision computes in; None without.
        cast: The type that all weights are trained in under ``precision: bf16-true`` and the like; None without.
        optimizer: Makes one of parameters.
        on_cuda: Whether the devices are CUDA's, on which attention keeps other tensors, and torch's optimizers work on
            all parameters at once.
        spread: How the run is spread over devices.
        world_size: Number of devices.
        accumulate: Batches in an optimizer step.
    """

    config: Any
    dtype: DType = "auto"
    quantization: Quantization | None = None
    lora: LoRA | None
    fused: bool = True
    gradient_checkpointing: bool = False
    layout: Layout
    reference: ReferenceKind = "adapters_off"
    autocast: torch.dtype | None = None
    cast: torch.dtype | None = None
    optimizer: Callable[[Any], Any] = torch.optim.AdamW
    on_cuda: bool = True
    spread: Spread = "whole"
    world_size: int = 1
    accumulate: int = 1


class Reckoned(NamedTuple):
    """What a run takes."""

    run: Run  # with plain rows, if its layout was not carried
    frozen: int  # numbers, not bytes
    shares: Shares
    step: Counted
    optimizer: OptimizerCost
    memory: Memory
    traffic: Traffic
    carried: bool  # whether the layout asked for was
    encoder_trained: bool


def reckon(run: Run, batch: PreferenceBatch) -> Reckoned:
    """Count a step of one device on one batch, and put its memory together.

    Args:
        run: As it is configured.
        batch: What one device gets.

    Returns:
        Sizes in bytes.

    Raises:
        ValueError: The strategy cannot spread what is trained, or the batch does not suit the model.
    """
    network = skeleton(
        run.config,
        dtype=run.dtype,
        quantization=run.quantization,
        lora=run.lora,
        fused=run.fused,
        gradient_checkpointing=run.gradient_checkpointing,
        cast=run.cast,
    )
    if run.spread in SHARDED:
        units_of(network)  # which refuses a trained encoder
    shares = shares_of(network)
    step_of = partial(count, network, batch, reference=run.reference, autocast=run.autocast, on_cuda=run.on_cuda)
    carried = True
    try:
        step = step_of(run.layout)
    except NotCarriedError:
        carried, run = False, replace(run, layout=Rows())  # as a run does
        step = step_of(run.layout)
    trained = next(parameter.dtype for parameter in network.parameters() if parameter.requires_grad)
    cost = optimizer_cost(run.optimizer, trained, foreach=run.on_cuda)
    images = sum(value.numel() * value.element_size() for value in batch.images.values())
    memory, traffic = _put_together(run, shares, step, cost, images)
    frozen = weigh(network).frozen
    return Reckoned(run, frozen, shares, step, cost, memory, traffic, carried, trains_encoder(network))


def spread_over(found: Reckoned, spread: Spread, world_size: int) -> Reckoned:
    """Reckon the same run on another number of devices, where a device's step is the same."""
    run = replace(found.run, spread=spread, world_size=world_size)
    memory, traffic = _put_together(run, found.shares, found.step, found.optimizer, found.memory.images)
    return found._replace(run=run, memory=memory, traffic=traffic)


def _put_together(
    run: Run, shares: Shares, step: Counted, optimizer: OptimizerCost, images: int
) -> tuple[Memory, Traffic]:
    memory = memory_of(
        shares,
        step,
        optimizer,
        spread=run.spread,
        world_size=run.world_size,
        frozen_copy=run.reference == "copy",
        images=images,
        accumulates=run.accumulate > 1,
    )
    copy_whole = run.reference == "copy" and run.spread == "fsdp"
    traffic = traffic_of(
        shares,
        spread=run.spread,
        world_size=run.world_size,
        forwards=1 if run.reference == "cached" or copy_whole else 2,
        batches=run.accumulate,
    )
    return memory, traffic
