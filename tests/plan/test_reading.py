"""What a plan takes from module and trainer: what fit would, and refused if fit would refuse it."""

from functools import partial

import pytest
from jsonargparse import Namespace
from peft import IA3Config, LoraConfig

from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import LoRA
from synthalign.modules import DPOModule
from synthalign.planning.reading import run_of

TRAINER = {
    "accelerator": "gpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": "32-true",
    "accumulate_grad_batches": 1,
}


@pytest.fixture
def module(tiny_llava):
    return partial(DPOModule, policy=str(tiny_llava), loss=DPO(beta=0.1))


def on(module, **trainer):
    return run_of(module, Namespace(**{**TRAINER, **trainer}))


@pytest.mark.parametrize(("devices", "count"), [("0,", 1), ("0,1", 2), ("2", 2), (3, 3), ([4], 1)])
def test_devices_are_counted_as_lightning_reads_them(module, devices, count):
    assert on(module(), devices=devices).world_size == count
    assert on(module(), devices=devices, num_nodes=2).world_size == 2 * count


@pytest.mark.parametrize(
    ("strategy", "spread"), [("auto", "ddp"), ("ddp", "ddp"), ("fsdp", "fsdp"), ("model_parallel", "sharded")]
)
def test_strategies_spread_as_they_are_known_to(module, strategy, spread):
    assert on(module(), devices=2, strategy=strategy).spread == spread


@pytest.mark.parametrize(
    ("settings", "trainer", "said"),
    [
        ({}, {"devices": 0}, "are no devices"),
        ({}, {"strategy": "ddp_spawn"}, "ddp_spawn cannot be planned"),
        ({}, {"strategy": Namespace(class_path="lightning.pytorch.strategies.FSDPStrategy")}, "cannot be planned"),
        (
            {},
            {"strategy": Namespace(class_path="FSDP1Strategy", init_args=Namespace(sharding_strategy="SHARD_GRAD_OP"))},
            "sharding_strategy FULL_SHARD",
        ),
        ({"quantization": "nf4"}, {"strategy": "model_parallel"}, "quantised weights"),
        ({"checkpoint_base": True}, {"strategy": "fsdp"}, "checkpoint_base"),
    ],
)
def test_what_fit_refuses_and_what_plan_does_not_know_is_refused(module, settings, trainer, said):
    with pytest.raises(ValueError, match=said):
        on(module(**settings), **trainer)


def test_optimizers_are_refused_as_fit_refuses_them(module):
    from bitsandbytes.optim import AdamW8bit
    from torch.optim import AdamW

    with pytest.raises(ValueError, match="AdamW8bit of bitsandbytes"):
        on(module(optimizer=AdamW8bit), strategy="model_parallel")
    with pytest.raises(ValueError, match=r"model\.init_args\.optimizer: Invalid learning rate: -1"):
        on(module(optimizer=partial(AdamW, lr=-1)))


def test_a_saved_adapter_is_taken_as_it_was_trained(module, tmp_path):
    LoraConfig(r=3, lora_alpha=5, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]).save_pretrained(tmp_path)
    pattern = r"(.*\.)?(q_proj|v_proj)"
    assert on(module(adapter=str(tmp_path))).lora == LoRA(r=3, alpha=5, dropout=0.1, target_modules=pattern)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "plan knows LoRA, and the adapter .* is .*IA3"),
        (LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]), "plan knows no modules_to_save"),
        (LoraConfig(target_modules="all-linear"), "which layers are all-linear"),
    ],
    ids=["IA3", "modules_to_save", "all-linear"],
)
def test_other_adapters_are_refused(module, tmp_path, config, said):
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=said):
        on(module(adapter=str(tmp_path)))
