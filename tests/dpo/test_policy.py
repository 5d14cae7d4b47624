"""The policy: only its adapter learns, and with the adapter off it is the model it came from."""

import pytest
import torch
from dpo.adapters import spread
from dpo.scoring import logps_of
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from synthalign.dpo.batch import collate
from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import LoRA, adapters_off, load_policy, save_adapter

LAYERS, LINEARS = 2, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_adapters_are_on_every_linear_of_the_language_model_and_nothing_else_learns(make_policy):
    policy = make_policy()
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    blocks = [f"base_model.model.model.language_model.layers.{layer}" for layer in range(LAYERS)]
    expected = {
        f"{block}.{'mlp' if linear in LINEARS[4:] else 'self_attn'}.{linear}.lora_{side}.default.weight"
        for block in blocks
        for linear in LINEARS
        for side in "AB"
    }
    assert trained == expected


def test_a_fresh_adapter_loses_log_2_even_with_dropout(tiny_llava, chat, four):
    policy = load_policy(str(tiny_llava), dtype="float64", lora=LoRA(r=4, dropout=0.5))
    assert any(isinstance(part, torch.nn.Dropout) and part.p == 0.5 and part.training for part in policy.modules())
    batch = collate(four, chat)
    ours = logps_of(policy, batch)
    with torch.no_grad(), adapters_off(policy):
        reference = logps_of(policy, batch)
    terms = DPO()(ours, reference)
    torch.testing.assert_close(terms.loss, torch.full((4,), 2.0, dtype=torch.float64).log(), rtol=1e-12, atol=0)


def test_dropout_acts_on_the_policy_and_not_on_the_reference(tiny_llava, make_policy, chat, four):
    policy, batch = make_policy(dropout=0.5), collate(four, chat)
    bare = load_policy(str(tiny_llava), dtype="float32")
    with torch.no_grad():
        assert not torch.equal(logps_of(policy, batch).chosen, logps_of(policy, batch).chosen)
        with adapters_off(policy):
            reference = logps_of(policy, batch)
        expected = logps_of(bare, batch)
    assert torch.equal(reference.chosen, expected.chosen) and torch.equal(reference.rejected, expected.rejected)


def test_gradients_agree_with_the_loss_under_dropout(make_policy, chat, four):
    """The head's second computation, in the backward pass, sees the same states: so a step along -grad descends."""
    policy, batch = make_policy("float64", dropout=0.3), collate(four, chat)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]

    def loss():
        torch.manual_seed(5)
        return -logps_of(policy, batch).chosen.mean()

    before = loss()
    gradients = torch.autograd.grad(before, trained)
    step = 1e-7
    with torch.no_grad():
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter -= step * gradient
        after = loss()
    expected = step * sum(gradient.square().sum().item() for gradient in gradients)
    assert (before - after).item() == pytest.approx(expected, rel=1e-2)  # norms compute in float32


def test_after_the_reference_pass_the_adapter_learns_again(make_policy):
    policy = make_policy()
    before = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    with adapters_off(policy):
        pass
    assert {name for name, parameter in policy.named_parameters() if parameter.requires_grad} == before


def test_a_bare_model_is_its_own_reference(tiny_llava):
    network = load_policy(str(tiny_llava))
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with adapters_off(network):
        assert network is not None


def test_adapters_of_a_16_bit_model_are_trained_in_32(make_policy):
    policy = make_policy("bfloat16")
    types = {learns: {p.dtype for p in policy.parameters() if p.requires_grad == learns} for learns in (True, False)}
    assert types == {True: {torch.float32}, False: {torch.bfloat16}}


def test_a_saved_adapter_is_trained_on_from_where_it_was(tiny_llava, make_policy, chat, four, tmp_path):
    policy, batch = make_policy(dropout=0.5), collate(four, chat)
    save_adapter(policy, tmp_path / "adapter")
    again = load_policy(str(tiny_llava), lora=LoRA(r=2), adapter=str(tmp_path / "adapter"))
    assert [p.shape for p in again.parameters() if p.requires_grad] == [
        p.shape for p in policy.parameters() if p.requires_grad
    ]
    assert any(isinstance(part, torch.nn.Dropout) and part.p == 0.5 and part.training for part in again.modules())
    with torch.no_grad():
        assert torch.equal(logps_of(again.eval(), batch).chosen, logps_of(policy.eval(), batch).chosen)


def test_saving_again_replaces_the_folder(make_policy, tmp_path):
    policy = make_policy()
    for seed in (1, 2):
        spread(policy, seed)
        save_adapter(policy, tmp_path / "adapter")
        (tmp_path / "adapter" / "left-behind").touch()
    save_adapter(policy, tmp_path / "adapter")
    files = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    own = {name.replace(".default", ""): p for name, p in policy.named_parameters() if p.requires_grad}
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name]) for name in own)


def test_a_pattern_that_fits_no_layer_is_refused(tiny_llava):
    network = AutoModelForImageTextToText.from_pretrained(tiny_llava)
    with pytest.raises(ValueError, match=r"LoRA fits no layer: .*no_such_layer"):
        LoRA(target_modules="no_such_layer")(network)


@pytest.mark.parametrize("settings", [{"r": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(ValueError, match=r"r must be >= 1 and dropout in \[0, 1\)"):
        LoRA(**settings)


def test_an_adapter_that_is_not_there_is_refused(tiny_llava, tmp_path):
    with pytest.raises(ValueError, match="no model folder at"):
        load_policy(str(tiny_llava), adapter=str(tmp_path / "adapter"))
