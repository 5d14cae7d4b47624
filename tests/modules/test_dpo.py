"""Training runs: what is logged is what happened, and only the adapter learns."""

import math
import os
from functools import partial

import pytest
import torch
from dpo.adapters import spread
from dpo.drawn_pairs import FIT, draw
from dpo.plain import plain_logps
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed
from torch.nn.functional import logsigmoid
from transformers import AutoModelForImageTextToText, AutoProcessor

from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import LoRA
from synthalign.dpo.schedules import WarmupCosine
from synthalign.modules import DPOModule
from synthalign.types import PreferenceTerms
from synthalign.vlm import VLM

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),  # the frozen base is meant to be
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),  # most runs here hold nothing out
]

SGD = partial(torch.optim.SGD, lr=0.1)
STILL = partial(torch.optim.SGD, lr=0.0)


def adapter_of(module):
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def plain(tiny_llava):
    """Compute chosen and rejected log-probs of the eight pairs the plain way."""
    processor = AutoProcessor.from_pretrained(tiny_llava)
    images, questions = [draw(pair.drawing) for pair in FIT], [pair.question for pair in FIT]

    def logps(network):
        sides = ([pair.chosen for pair in FIT], [pair.rejected for pair in FIT])
        return [plain_logps(network, processor, images, questions, said) for said in sides]

    return logps


def bare(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64).eval()


def test_the_first_step_loses_log_2_even_with_dropout(make_module, make_trainer, eight, logged):
    make_trainer().fit(make_module(lora=LoRA(r=4, dropout=0.3)), eight(8))
    assert logged("train/loss") == [pytest.approx(math.log(2), rel=1e-6)]  # logged as float32
    assert logged("train/reward_margin") == [0.0]
    assert logged("train/accuracy") == [0.5]


def test_what_is_logged_equals_a_plain_computation(make_module, make_trainer, eight, logged, plain, tiny_llava):
    module = make_module(optimizer=STILL)
    spread(module.network)
    make_trainer().fit(module, eight(8))
    with torch.no_grad():
        (chosen, chosen_tokens), (rejected, rejected_tokens) = plain(module.network)
        (base_chosen, _), (base_rejected, _) = plain(bare(tiny_llava))
    rewards = 0.5 * (chosen - base_chosen), 0.5 * (rejected - base_rejected)
    margin = rewards[0] - rewards[1]
    assert 0 < (margin > 0).sum() < 8
    expected = {
        "loss": -logsigmoid(margin),
        "reward_margin": margin,
        "accuracy": (margin > 0).double(),
        "chosen_reward": rewards[0],
        "rejected_reward": rewards[1],
        "chosen_logps": chosen,
        "rejected_logps": rejected,
        "chosen_logratio": chosen - base_chosen,
        "chosen_tokens": chosen_tokens.double(),
        "rejected_tokens": rejected_tokens.double(),
    }
    for name, values in expected.items():
        assert logged(f"train/{name}") == [pytest.approx(values.mean().item(), rel=1e-6)], name


@pytest.mark.parametrize("batch_size", [4, 2])
def test_a_batch_and_its_parts_accumulated_give_the_same_losses(batch_size, make_module, make_trainer, eight, logged):
    whole, parts = make_module(), make_module()
    make_trainer("whole", max_epochs=3).fit(whole, eight(8))
    trainer = make_trainer("parts", max_epochs=3, accumulate_grad_batches=8 // batch_size)
    trainer.fit(parts, eight(batch_size))
    for figure in ("loss", "reward_margin", "chosen_logps", "rejected_tokens"):
        here, there = logged(f"train/{figure}", "whole"), logged(f"train/{figure}", "parts")
        assert len(here) == 3 and here == pytest.approx(there, rel=1e-6)
    assert logged("train/loss", "whole")[2] < 0.6
    for name, parameter in adapter_of(whole).items():
        torch.testing.assert_close(parameter, adapter_of(parts)[name], rtol=1e-6, atol=1e-9, msg=name)


def test_one_step_is_the_plain_gradient_times_the_rate(make_module, make_trainer, eight, plain, tiny_llava):
    module = make_module(optimizer=SGD)
    spread(module.network)
    before = adapter_of(module)
    with torch.no_grad():
        (base_chosen, _), (base_rejected, _) = plain(bare(tiny_llava))
    (chosen, _), (rejected, _) = plain(module.network)
    loss = -logsigmoid(0.5 * ((chosen - base_chosen) - (rejected - base_rejected))).mean()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trained)
    make_trainer().fit(module, eight(8))
    for (name, old), new, gradient in zip(before.items(), trained, gradients, strict=True):
        assert (new - old + 0.1 * gradient).norm() <= 1e-6 * 0.1 * gradient.norm(), name


class Gradients(Callback):
    """Notes which parameters have gradients after the backward pass."""

    def on_after_backward(self, trainer, pl_module):
        self.names = {name for name, parameter in pl_module.named_parameters() if parameter.grad is not None}


def test_only_the_adapter_gets_gradients_and_the_base_stays_bit_for_bit(make_module, make_trainer, eight, tiny_llava):
    module, gradients = make_module(), Gradients()
    make_trainer(max_epochs=3, callbacks=[gradients]).fit(module, eight(4))
    trained = adapter_of(module)
    assert gradients.names == set(trained) and all(".lora_" in name for name in trained)
    assert all(parameter.abs().sum() > 0 for name, parameter in trained.items() if "lora_B" in name)
    own = {
        name.replace(".base_layer", ""): value
        for name, value in module.network.base_model.model.state_dict().items()
        if ".lora_" not in name
    }
    original = bare(tiny_llava).state_dict()
    assert own.keys() == original.keys()
    assert all(torch.equal(own[name], original[name]) for name in original)


class Modes(Callback):
    """Notes, at every training step, which dropouts act, and whether anything in the frozen base is in train mode."""

    def __init__(self):
        self.dropouts: list[bool] = []
        self.tower: list[bool] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        parts = dict(pl_module.network.named_modules())
        self.dropouts += [part.training for name, part in parts.items() if "lora_dropout.default" in name]
        self.tower += [part.training for name, part in parts.items() if "vision_tower" in name]


def test_dropout_acts_in_training_before_and_after_validation(make_module, make_trainer, eight):
    modes = Modes()
    trainer = make_trainer(max_epochs=2, callbacks=[modes])
    trainer.fit(make_module(lora=LoRA(r=4, dropout=0.3)), eight(8), eight(8))
    assert modes.dropouts == [True] * 2 * 14 and not any(modes.tower) and modes.tower


def test_held_out_pairs_count_once_each_whatever_the_batches(make_module, make_trainer, eight, logged, plain):
    module = make_module(optimizer=STILL)
    spread(module.network)
    make_trainer().fit(module, eight(8), eight(3))  # 3, 3 and 2 pairs
    for figure in ("loss", "accuracy", "chosen_logps", "rejected_tokens"):
        assert logged(f"val/{figure}") == pytest.approx(logged(f"train/{figure}"), rel=1e-6)
    (chosen, _), _ = plain(module.network)
    assert logged("val/chosen_logps") == [pytest.approx(chosen.mean().item(), rel=1e-6)]


class Rates(Callback):
    """Notes the learning rate of every step."""

    def __init__(self):
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def test_the_schedule_counts_optimizer_steps(make_module, make_trainer, eight):
    rates = Rates()
    module = make_module(optimizer=SGD, schedule=WarmupCosine(warmup_ratio=0.25, floor=0.1))
    make_trainer(max_epochs=4, accumulate_grad_batches=2, callbacks=[rates]).fit(module, eight(2))
    # 4 epochs of 4 batches, two a step, are 8 steps: 2 of them rise, 6 fall
    expected = [1 / 3, 2 / 3] + [0.1 + 0.9 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)]
    assert rates.rates == pytest.approx([0.1 * multiplier for multiplier in expected])


def test_without_a_schedule_the_rate_stays(make_module, make_trainer, eight):
    rates = Rates()
    make_trainer(max_epochs=2, callbacks=[rates]).fit(make_module(optimizer=SGD), eight(4))
    assert rates.rates == [0.1] * 4


def test_a_schedule_without_an_end_is_refused(make_module, make_trainer, eight):
    with pytest.raises(ValueError, match="a schedule needs to know when training ends: set max_epochs or max_steps"):
        make_trainer(max_epochs=-1).fit(make_module(schedule=WarmupCosine()), eight(4))


class Broken:
    """A loss that is no number for the third pair of a batch."""

    def __call__(self, policy, reference):
        terms = DPO()(policy, reference)
        return PreferenceTerms(terms.loss * torch.tensor([1, 1, math.nan, 1]), *terms[1:])


def test_a_loss_that_is_no_number_stops_the_run_and_names_its_pair(make_module, make_trainer, eight):
    module = make_module(loss=Broken())
    with pytest.raises(FloatingPointError, match=f"the loss is no finite number at pairs {FIT[2].id}; the batch is in"):
        make_trainer().fit(module, eight(4))


def test_in_mixed_precision_logps_are_still_summed_in_float32(make_module, make_trainer, eight, logged, plain):
    module = make_module(dtype="float32", optimizer=STILL)
    make_trainer(precision="bf16-mixed").fit(module, eight(8))
    assert logged("train/loss") == [pytest.approx(math.log(2), rel=1e-6)]
    (chosen, _), _ = plain(module.network)
    mean = logged("train/chosen_logps")[0]
    assert mean == pytest.approx(chosen.mean().item(), rel=0.02)
    assert mean != torch.tensor(mean).bfloat16().item()  # more digits than bfloat16 has


def test_it_answers_as_the_model_it_came_from_would(make_module, tiny_llava):
    module = make_module(dtype="float32", answer_batch_size=3).eval()
    images, questions = [draw(pair.drawing) for pair in FIT], [pair.question for pair in FIT]
    expected = VLM(model=str(tiny_llava), device="cpu", max_new_tokens=6).respond(images, questions)
    assert [one.text for one in module.answer(images, questions, max_new_tokens=6)] == [one.text for one in expected]
    spread(module.network)
    changed = module.answer(images, questions, max_new_tokens=6)
    assert [one.text for one in changed] != [one.text for one in expected]
    with module.adapters_off():
        again = module.answer(images, questions, max_new_tokens=6)
    assert [one.text for one in again] == [one.text for one in expected]


def test_evaluations_keep_image_features_for_base_and_policy(make_module):
    module = make_module(dtype="float32", keep_features_gib=1.0).eval()
    plain = make_module(dtype="float32").eval()
    images, questions = [draw(pair.drawing) for pair in FIT], [pair.question for pair in FIT]
    expected = plain.answer(images, questions, max_new_tokens=6)
    assert module.answer(images, questions, max_new_tokens=6) == expected
    calls: list[int] = []
    module.network.get_base_model().model.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    again = [draw(pair.drawing) for pair in FIT]
    for network in (module.network, plain.network):
        spread(network)
    changed = plain.answer(images, questions, max_new_tokens=6)
    assert module.answer(again, questions, max_new_tokens=6) == changed != expected
    with module.adapters_off():
        assert module.answer(again, questions, max_new_tokens=6) == expected
    assert not calls


class Asks(Callback):
    """Asks after validation."""

    def on_validation_epoch_end(self, trainer, pl_module):
        images, questions = [draw(pair.drawing) for pair in FIT], [pair.question for pair in FIT]
        self.texts = [one.text for one in pl_module.answer(images, questions, max_new_tokens=6)]
        self.adapted = [pl_module.has_adapter]
        with torch.no_grad():
            for name, parameter in pl_module.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.1)
        self.adapted.append(pl_module.has_adapter)


@pytest.fixture
def left_alone():
    """Undo what a distributed strategy leaves to this process, and to those that it starts."""
    before = dict(os.environ)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("left_alone")
@pytest.mark.filterwarnings("ignore:It is recommended to use `self.log")  # the module sums over ranks itself
def test_under_a_strategy_that_spreads_the_weights_answers_are_the_same(tiny_llava, make_trainer, eight, capsys):
    asks = [Asks(), Asks()]
    spreading = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    for ask, strategy, name in zip(asks, ("auto", spreading), ("whole", "spread"), strict=True):
        module = DPOModule(policy=str(tiny_llava), loss=DPO(), keep_features_gib=1.0, answer_batch_size=3)
        trainer = make_trainer(name, strategy=strategy, devices=1, callbacks=[ask])
        trainer.validate(module, eight(8), verbose=False)
    assert asks[0].texts == asks[1].texts
    assert asks[0].adapted == asks[1].adapted == [False, True]
    assert "its weights are sharded" in capsys.readouterr().err
