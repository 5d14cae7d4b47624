"""Layers that compute their activations again give the same loss and gradients, and keep less meanwhile."""

import copy

import pytest
import torch
from dpo.keeping import kept_bytes
from dpo.nine import NINE, policy_and_batch
from dpo.scoring import logps_of

from synthalign.dpo.batch import collate
from synthalign.dpo.checkpointing import checkpoint_layers
from synthalign.dpo.fused import fuse
from synthalign.dpo.layouts import Rows, Tree, Trie
from synthalign.vlm.families import decoder_of


def step(network, batch, layout=None):
    """Log-probs of a batch, gradients of a mix of them, and the bytes kept in between, weights apart."""
    with kept_bytes(network) as kept:
        logps = logps_of(network, batch, layout)
    size = kept()
    trained = [p for p in network.parameters() if p.requires_grad]
    return logps, torch.autograd.grad((logps.chosen - 0.5 * logps.rejected).sum(), trained), size


def assert_same(found, expected):
    for mine, other in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("layout", [Rows(), Tree(), Trie()], ids=["rows", "tree", "trie"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("fused", [False, True], ids=["own", "fused"])
def test_losses_and_gradients_are_the_same_and_less_is_kept(fused, mode, layout, make_policy, chat, four):
    policy, batch = make_policy().train(mode == "train"), collate(four, chat)
    if fused:
        fuse(policy)
    plain = step(policy, batch, layout)
    assert checkpoint_layers(policy) == 2
    found = step(policy, batch, layout)
    assert_same(found, plain)
    assert found[2] < 0.5 * plain[2]


@pytest.mark.parametrize("family", NINE, ids=lambda family: family.__name__)
def test_layers_of_nine_families_are_found(family):
    policy, batch = policy_and_batch(family)
    plain = step(policy, batch)
    assert checkpoint_layers(policy) == 3
    found = step(policy, batch)
    assert_same(found, plain)
    assert found[2] < plain[2]


def test_what_dropout_dropped_is_dropped_again(make_policy, chat, four):
    policy, batch = make_policy(dropout=0.5).train(), collate(four, chat)
    torch.manual_seed(0)
    plain = step(policy, batch)
    checkpoint_layers(policy)
    torch.manual_seed(0)
    assert_same(step(policy, batch), plain)
    torch.manual_seed(1)
    assert not torch.equal(step(policy, batch)[0].chosen, plain[0].chosen)


def test_one_of_so_many_layers_does_it_and_none_undoes_it(make_policy, chat, four):
    policy, batch = make_policy(), collate(four, chat)
    sizes = []
    for every, count in ((0, 0), (2, 1), (1, 2), (1, 2)):
        assert checkpoint_layers(policy, every) == count
        sizes.append(step(policy, batch)[2])
    assert sizes[0] > sizes[1] > sizes[2] == sizes[3]
    assert checkpoint_layers(policy, 0) == 0
    assert not any("forward" in module.__dict__ for module in policy.modules())
    with pytest.raises(ValueError, match="every must be >= 0, got -1"):
        checkpoint_layers(policy, -1)


def test_another_forward_on_a_layer_is_run_and_kept(make_policy):
    policy = make_policy()
    layer = decoder_of(policy).layers[0]
    own, calls = layer.forward, []

    def counting(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    layer.forward = counting
    for every in (1, 1, 0):
        checkpoint_layers(policy, every)
    assert layer.forward is counting
    checkpoint_layers(policy)
    policy(input_ids=torch.tensor([[1, 7, 9]]), use_cache=False).logits.sum().backward()
    assert len(calls) == 2  # in the forward pass and in the backward pass


def test_no_input_is_made_to_require_gradients(make_policy):
    policy = make_policy()
    checkpoint_layers(policy)
    embeddings = decoder_of(policy).embed_tokens
    assert not embeddings(torch.tensor([1])).requires_grad


def test_a_cache_is_filled_once(make_policy):
    policy, ids = make_policy(), torch.tensor([[1, 7, 9]])
    checkpoint_layers(policy)
    outputs = policy(input_ids=ids, use_cache=True)
    outputs.logits.sum().backward()
    assert outputs.past_key_values.get_seq_length() == 3


def test_a_copy_computes_with_its_own_layers(make_policy, chat, four):
    policy, batch = make_policy(), collate(four, chat)
    checkpoint_layers(policy)
    before = step(policy, batch)
    twin = copy.deepcopy(policy)
    assert_same(step(twin, batch), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    assert not torch.equal(step(twin, batch)[0].chosen, before[0].chosen)
    assert_same(step(policy, batch), before)
