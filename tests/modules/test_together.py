"""What cannot be trained together is refused before anything is loaded, with the way out."""

from functools import partial

import bitsandbytes
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy

from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import LoRA
from synthalign.dpo.reference import Cached, FrozenCopy
from synthalign.modules import DPOModule
from synthalign.modules.together import check_optimizer, check_together
from synthalign.training.strategies import FSDP2Strategy


def module(tiny_llava, **settings):
    return DPOModule(policy=str(tiny_llava), loss=DPO(), **settings)


@pytest.mark.parametrize("strategy", [FSDP2Strategy(), FSDPStrategy()])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_weights_are_not_spread(strategy, quantization, tiny_llava):
    for training in (True, False):
        with pytest.raises(ValueError, match=rf"\({quantization}\).*take trainer.strategy ddp .*: null$"):
            check_together(module(tiny_llava, quantization=quantization), strategy, training=training)


def test_quantised_weights_are_not_trained(tiny_llava):
    alone = module(tiny_llava, quantization="nf4", lora=None, reference=Cached())
    with pytest.raises(ValueError, match="constants and cannot be trained: give lora"):
        check_together(alone, SingleDeviceStrategy(), training=True)
    check_together(alone, SingleDeviceStrategy(), training=False)


def test_a_quantised_policy_is_not_copied(tiny_llava):
    copied = module(tiny_llava, quantization="nf4", reference=FrozenCopy())
    with pytest.raises(ValueError, match="its adapters off, it is its own reference"):
        check_together(copied, SingleDeviceStrategy(), training=True)


@pytest.mark.parametrize("strategy", [DDPStrategy(), SingleDeviceStrategy(), None])
def test_quantised_weights_with_adapters_go_with_whole_models(strategy, tiny_llava):
    check_together(module(tiny_llava, quantization="nf4", lora=LoRA()), strategy, training=True)


def test_strategies_that_nobody_tried_are_refused(tiny_llava):
    strategy = object.__new__(DeepSpeedStrategy)  # which needs deepspeed to be made
    with pytest.raises(ValueError, match=r"^DeepSpeedStrategy was never tried .* auto, ddp, model_parallel"):
        check_together(module(tiny_llava), strategy, training=True)


def test_optimizers_of_bitsandbytes_take_whole_weights_only():
    adamw = partial(bitsandbytes.optim.AdamW8bit, [torch.nn.Parameter(torch.zeros(2))])
    check_optimizer(adamw(), DDPStrategy())
    with pytest.raises(ValueError, match=r"^AdamW8bit .* take torch.optim.AdamW"):
        check_optimizer(adamw(), FSDP2Strategy())
