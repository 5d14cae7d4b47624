"""Faster forwards compute what the modules' own compute, save less, and stand aside where they do not apply."""

import copy
import pickle

import pytest
import torch
from dpo.keeping import kept_bytes
from dpo.nine import NINE, policy_and_batch
from torch import nn

from synthalign.dpo.fused import Fused, fuse, unfuse
from synthalign.vlm.families import decoder_of

LORA, MLP, NORM = "_LowRankBackward", "_GatedDownBackward", "_NormBackward"


def states_of(network):
    """The language model's states of seven random tokens in two rows."""
    noise = torch.Generator().manual_seed(3)
    decoder = decoder_of(network)
    embeddings = torch.randn(2, 7, decoder.config.hidden_size, generator=noise, dtype=torch.float64)
    return decoder(inputs_embeds=embeddings.to(decoder.embed_tokens.weight), use_cache=False).last_hidden_state


def gradients_of(network):
    """States and, of a random mix of them, the gradient of every trained parameter."""
    states = states_of(network)
    mix = torch.randn(states.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    found = torch.autograd.grad((states * mix.to(states)).sum(), list(trained.values()))
    return {"states": states.detach(), **dict(zip(trained, found, strict=True))}


def steps_of(network):
    """Names of the steps that the backward pass will take."""
    names, ahead = set(), [states_of(network).grad_fn]
    seen = set(ahead)
    while ahead:
        step = ahead.pop()
        names.add(type(step).__name__)
        following = {after for after, _ in step.next_functions if after is not None} - seen
        seen |= following
        ahead += following
    return names


def saved_bytes(network):
    """Bytes that are kept for the backward pass, weights apart; tensors that share memory count once."""
    with kept_bytes(network) as kept:
        states_of(network)
    return kept()


def assert_equal(found, expected, rtol):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert (found[name] - value).norm() <= rtol * value.norm(), name


def errors_of(found, truth):
    """How far states and gradients are from the truth, each relative to its size."""
    return torch.stack([(found[name].double() - value).norm() / value.norm() for name, value in truth.items()])


@pytest.mark.parametrize("family", NINE, ids=lambda family: family.__name__)
def test_states_and_gradients_of_nine_families_equal_their_own(family):
    policy, _ = policy_and_batch(family)
    own = gradients_of(policy)
    # transformers' norms compute in fp32 whatever they are given, which ours in fp64 would not equal
    assert fuse(policy) == Fused(lora=3 * 7, norms=0, mlps=3)
    assert {LORA, MLP} <= steps_of(policy)
    assert_equal(gradients_of(policy), own, 1e-12)


@pytest.mark.parametrize("family", NINE, ids=lambda family: family.__name__)
def test_norms_of_nine_families_are_as_near_to_the_truth_as_their_own(family):
    truth = gradients_of(policy_and_batch(family)[0])
    policy, _ = policy_and_batch(family, torch.float32)
    own = errors_of(gradients_of(policy), truth)
    assert fuse(policy).norms >= 3 * 2 + 1
    assert NORM in steps_of(policy)
    assert errors_of(gradients_of(policy), truth).mean() < 2 * own.mean()


def test_bf16_with_fp32_adapters_is_as_near_to_the_truth_as_peft(make_policy):
    policy = make_policy("bfloat16")
    truth = gradients_of(copy.deepcopy(policy).double())
    own = gradients_of(policy)
    fuse(policy)
    found = gradients_of(policy)
    assert {LORA, MLP, NORM} <= steps_of(policy)
    for name, value in own.items():
        assert found[name].dtype == value.dtype == (torch.bfloat16 if name == "states" else torch.float32)
    assert errors_of(found, truth).mean() < 1.2 * errors_of(own, truth).mean()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fresh_adapter_changes_no_bit(dtype, make_policy):
    policy = make_policy(dtype)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    fuse(policy)
    on = states_of(policy)
    with torch.no_grad():
        assert torch.equal(states_of(policy), on)
        with policy.disable_adapter():
            assert torch.equal(states_of(policy), on)


def test_with_the_adapter_off_the_linears_are_the_base_models(make_policy):
    policy = make_policy("float64")
    fuse(policy)
    with torch.no_grad(), policy.disable_adapter():
        off = states_of(policy)
    bare = policy.unload()
    unfuse(bare)
    with torch.no_grad():
        torch.testing.assert_close(off, states_of(bare), rtol=1e-12, atol=1e-13)


def test_dropout_is_left_to_peft_and_only_while_it_drops(make_policy):
    policy = make_policy("float64", dropout=0.5).eval()
    fuse(policy)
    assert {LORA, MLP} <= steps_of(policy)
    policy.train()
    assert not {LORA, MLP} & steps_of(policy)
    torch.manual_seed(0)
    found = gradients_of(policy)
    unfuse(policy)
    torch.manual_seed(0)
    assert_equal(found, gradients_of(policy), 1e-12)


def test_merged_adapters_are_left_to_peft(make_policy):
    policy = make_policy("float64")
    fuse(policy)
    apart = states_of(policy)
    policy.merge_adapter()
    merged = states_of(policy)
    torch.testing.assert_close(merged, apart, rtol=1e-9, atol=1e-9)
    assert merged.grad_fn is None
    policy.unmerge_adapter()
    assert LORA in steps_of(policy)


def test_of_two_adapters_one_is_fused_and_both_are_left_to_peft(make_policy):
    policy = make_policy("float64")
    policy.add_adapter("second", policy.peft_config["default"])
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B.second" in name:
                parameter.fill_(0.1)
    fuse(policy)
    for active, fused in (("second", True), (["default", "second"], False)):
        policy.base_model.set_adapter(active)
        found = gradients_of(policy)
        assert ({LORA, MLP} <= steps_of(policy)) == fused
        own = copy.deepcopy(policy)
        unfuse(own)
        assert_equal(found, gradients_of(own), 1e-12)


def test_autocast_and_hooks_are_left_to_the_modules_themselves(make_policy):
    policy = make_policy()
    fuse(policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not {LORA, MLP, NORM} & steps_of(policy)
    calls = []
    down = decoder_of(policy).layers[0].mlp.down_proj
    for module in (down, down.base_layer):
        handle = module.register_forward_hook(lambda *_: calls.append(1))
        states_of(policy)
        handle.remove()
    assert len(calls) == 2


def test_weights_that_are_trained_are_left_alone(make_policy):
    policy = make_policy("float64")
    decoder_of(policy).norm.requires_grad_(True)
    decoder_of(policy).layers.requires_grad_(True)
    assert fuse(policy).lora == fuse(policy).norms == 0
    own = copy.deepcopy(policy)
    unfuse(own)
    assert_equal(gradients_of(policy), gradients_of(own), 1e-12)
    assert not {LORA, MLP, NORM} & steps_of(policy)


def test_weights_that_are_trained_later_get_their_gradients(make_policy):
    policy = make_policy()
    fuse(policy)
    decoder_of(policy).layers.requires_grad_(True)
    assert not {LORA, MLP} & steps_of(policy)
    gradients_of(policy)  # of every parameter of the layers


def test_without_adapters_norms_and_mlps_are_fused(make_policy):
    bare = make_policy().unload().requires_grad_(False)
    own = states_of(bare)
    assert fuse(bare) == Fused(lora=0, norms=2 * 2 + 1, mlps=2)
    torch.testing.assert_close(states_of(bare), own, rtol=1e-5, atol=1e-5)


def test_fusing_twice_is_fusing_once_and_can_be_undone(make_policy):
    policy = make_policy()
    names = list(policy.state_dict())
    own = states_of(policy)
    assert fuse(policy) == fuse(policy) == Fused(lora=2 * 7, norms=2 * 2 + 1, mlps=2)
    assert list(policy.state_dict()) == names
    unfuse(policy)
    unfuse(policy)
    assert not any("forward" in module.__dict__ for module in policy.modules())
    assert torch.equal(states_of(policy), own)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_a_copy_computes_with_its_own_weights(copied, make_policy):
    policy = make_policy()
    fuse(policy)
    before = gradients_of(policy)
    twin = copied(policy)
    assert_equal(gradients_of(twin), before, 0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    found = gradients_of(twin)
    assert {LORA, MLP, NORM} <= steps_of(twin)
    unfuse(twin)
    assert_equal(found, gradients_of(twin), 0.02)
    assert_equal(gradients_of(policy), before, 0)


@pytest.mark.parametrize(("dtype", "share"), [("float32", 0.8), ("bfloat16", 0.5)])
def test_less_is_kept_for_the_backward_pass(dtype, share, make_policy):
    policy = make_policy(dtype)
    own = saved_bytes(policy)
    fuse(policy)
    assert saved_bytes(policy) < share * own


class Offset(nn.Module):
    """Gemma's norm in fp64."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.randn(width, dtype=torch.float64), requires_grad=False), 0.01

    def forward(self, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * (1 + self.weight)


class Centred(nn.Module):
    """It has the parts of such a norm, and computes another thing."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width, dtype=torch.float64), requires_grad=False), 0.01

    def forward(self, x):
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, None, self.eps)


@pytest.mark.parametrize(
    "norm", [nn.RMSNorm(32, 0.01, dtype=torch.float64).requires_grad_(False), Offset(32)], ids=["plain", "offset"]
)
def test_the_gradient_of_a_norm_is_that_of_its_formula(norm, make_policy):
    policy = make_policy("float64")
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(5))
    decoder_of(policy).norm = norm
    assert fuse(policy).norms == 1
    x = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(norm(x), type(norm).forward(norm, x), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(norm, x)


def test_what_only_looks_like_a_norm_or_gated_mlp_is_left_alone(make_policy):
    policy = make_policy("float64")
    decoder_of(policy).norm = Centred(32)
    decoder_of(policy).layers[0].mlp.act_fn = nn.ReLU()
    assert fuse(policy) == Fused(lora=2 * 7, norms=0, mlps=1)


def test_other_forwards_on_instances_are_kept(make_policy):
    policy = make_policy()
    layer = decoder_of(policy).layers[0].mlp.down_proj
    layer.forward = lambda x: type(layer).forward(layer, x) * 0
    assert fuse(policy).lora == 2 * 7 - 1
    mlp = decoder_of(policy).layers[0].mlp
    assert not mlp(torch.randn(1, 3, 32)).any()
    unfuse(policy)
    assert "forward" in layer.__dict__


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_states_and_gradients_are_as_near_to_the_truth_as_their_own(make_policy):
    for dtype in ("float32", "bfloat16"):
        policy = make_policy(dtype).cuda()
        truth = gradients_of(copy.deepcopy(policy).double())
        own = errors_of(gradients_of(policy), truth)
        fuse(policy)
        assert {LORA, MLP} <= steps_of(policy)
        assert errors_of(gradients_of(policy), truth).mean() < 2 * own.mean()
