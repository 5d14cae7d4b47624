"""What cannot be combined is refused before anything is loaded, with the way out."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.trainer.states import TrainerFn

from synthalign.dpo.losses import DPO
from synthalign.dpo.reference import AdaptersOff, Cached, FrozenCopy
from synthalign.modules import DPOModule
from synthalign.modules.combinations import check_combination, check_optimizer, check_strategy
from synthalign.training.fsdp1 import FSDP1Strategy

check = partial(
    check_combination, quantization=None, adapters=True, reference=AdaptersOff(), sharded=False, training=True
)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("training", [True, False])
def test_quantised_weights_are_not_spread(training, quantization):
    with pytest.raises(ValueError, match=rf"\({quantization}\).*take trainer.strategy ddp .*: null$"):
        check(quantization=quantization, sharded=True, training=training)


def test_quantised_weights_are_not_trained():
    with pytest.raises(ValueError, match="constants and cannot be trained: give lora"):
        check(quantization="nf4", adapters=False, reference=Cached())


@pytest.mark.parametrize("stage", [TrainerFn.TESTING, TrainerFn.VALIDATING])
def test_a_quantised_base_is_evaluated_without_adapters(stage, tiny_llava):
    module = DPOModule(policy=str(tiny_llava), loss=DPO(), quantization="nf4", lora=None)
    module.trainer = Trainer(accelerator="cpu", logger=False)
    module.trainer.state.fn = stage
    module.configure_model()
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_quantised_policy_is_not_copied():
    with pytest.raises(ValueError, match="its adapters off, it is its own reference"):
        check(quantization="nf4", reference=FrozenCopy())


def test_quantised_weights_with_adapters_go_with_whole_models():
    check(quantization="nf4")


def test_what_trains_all_weights_is_no_reference_of_itself():
    with pytest.raises(ValueError, match=r"take synthalign.dpo.reference.Cached .* or synthalign.dpo.reference.Frozen"):
        check(adapters=False)
    check(adapters=False, training=False)


def test_frozen_weights_that_are_spread_go_into_no_checkpoint():
    with pytest.raises(ValueError, match=r"^checkpoint_base gathers no weights .* `synthalign export --merged`"):
        check(sharded=True, checkpoint_base=True)
    check(checkpoint_base=True)


def test_a_strategy_that_spreads_a_model_blindly_is_refused():
    with pytest.raises(ValueError, match=r"does not know which .* take trainer.strategy model_parallel, or fsdp"):
        check_strategy(FSDPStrategy())


def test_ranks_that_would_share_a_batch_are_refused():
    """Lightning's FSDP2 by itself gives it to all ranks of a node; the datamodule gives each its own."""
    strategy: Any = ModelParallelStrategy()
    strategy.cluster_environment = LightningEnvironment()
    strategy.cluster_environment.set_world_size(2)
    strategy._device_mesh = {"data_parallel": SimpleNamespace(size=lambda: 1)}  # a mesh of one node of two ranks
    with pytest.raises(ValueError, match=r"means 2 ranks to share 1 batches: take trainer.strategy model_parallel"):
        check_strategy(strategy)


def test_strategies_that_nobody_tried_are_refused():
    strategy = object.__new__(DeepSpeedStrategy)  # which needs deepspeed to be made
    with pytest.raises(ValueError, match=r"^DeepSpeedStrategy was never tried .* auto, ddp, model_parallel"):
        check_strategy(strategy)


@pytest.mark.parametrize("strategy", [FSDP1Strategy(), DDPStrategy(), SingleDeviceStrategy(), None])
def test_strategies_that_were_tried_are_taken(strategy):
    check_strategy(strategy)


def test_optimizers_of_bitsandbytes_take_whole_weights_only():
    adamw = partial(bitsandbytes.optim.AdamW8bit, [torch.nn.Parameter(torch.zeros(2))])
    check_optimizer(adamw(), sharded=False)
    with pytest.raises(ValueError, match=r"^AdamW8bit .* take torch.optim.AdamW"):
        check_optimizer(adamw(), sharded=True)
