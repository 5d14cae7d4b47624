"""A policy kept in 4 or 8 bits learns by its adapters, and goes on learning after it was evaluated."""

import json
from functools import partial

import bitsandbytes
import pytest
import tiny
import torch
from dpo.drawn_pairs import draw
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from synthalign.callbacks import Evaluate
from synthalign.dpo.policy import LoRA
from synthalign.evals.pope import POPE

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),  # the frozen base is meant to be
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Gradients(Callback):
    """Keeps, of every step, how large each trained weight's gradient is."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        trained = [(name, value) for name, value in pl_module.named_parameters() if value.requires_grad]
        self.steps.append({name: float(value.grad.norm()) for name, value in trained})


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """4-bit kernels need a wider one."""
    return str(tiny.build_llava(tmp_path_factory.mktemp("wide"), hidden_size=64))


@pytest.fixture
def evaluate(tmp_path):
    draw("red circle on white").save(tmp_path / "1.png")
    row = {"question_id": 1, "image": "1.png", "text": "Is there a dog?", "label": "no"}
    (tmp_path / "pope.json").write_text(json.dumps([row]))
    return Evaluate(evals=[POPE(files={"a": tmp_path / "pope.json"}, images=tmp_path)], every_n_steps=2)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_every_factor_learns_before_and_after_an_evaluation(
    quantization, policy, evaluate, make_module, make_trainer, eight
):
    module = make_module(
        policy=policy,
        dtype="float32",
        quantization=quantization,
        optimizer=partial(bitsandbytes.optim.AdamW8bit, lr=1e-2),
    )
    kinds = {type(part).__name__ for part in module.network.modules()}
    assert ("Linear4bit" if quantization == "nf4" else "Linear8bitLt") in kinds
    packed = {name: p.detach().clone() for name, p in module.network.named_parameters() if not p.requires_grad}
    gradients = Gradients()
    make_trainer(callbacks=[evaluate, gradients]).fit(module, eight(2))
    assert [entry["step"] for entry in evaluate.history] == [0, 2, 4]
    assert len(gradients.steps) == 4
    first, *later = gradients.steps
    assert len(first) == 2 * 2 * 7  # two factors on seven layers of each of two blocks
    assert all((norm > 0) == ("lora_B" in name) for name, norm in first.items())  # B is zero, so A cannot feel it yet
    assert all(norm > 0 for step in later for norm in step.values())
    assert all(torch.equal(p, packed[name]) for name, p in module.network.named_parameters() if name in packed)


def test_a_run_with_an_8_bit_optimizer_goes_on_exactly(policy, make_module, make_trainer, eight, tmp_path):
    def fit(name, **settings):
        module = make_module(
            policy=policy,
            dtype="float32",
            quantization="nf4",
            lora=LoRA(r=64, alpha=64),  # bitsandbytes keeps a state of fewer than 4096 numbers in 32 bits
            optimizer=partial(bitsandbytes.optim.AdamW8bit, lr=1e-2),
        )
        keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename=name + "-{epoch}", save_top_k=-1)
        trainer = make_trainer(name, max_epochs=2, enable_checkpointing=True, callbacks=[keep])
        trainer.fit(module, eight(2), weights_only=True, **settings)
        (states,) = (optimizer.state.values() for optimizer in trainer.optimizers)
        assert any(state["state1"].dtype == torch.uint8 for state in states)
        return {name: value for name, value in module.named_parameters() if value.requires_grad}

    whole = fit("whole")
    resumed = fit("resumed", ckpt_path=tmp_path / "kept" / "whole-epoch=0.ckpt")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
