"""Loss and gradients in float64 against an oracle: a model's own forward, eager, all logits; adapters off before it."""

import pytest
import torch
from dpo.nine import llava, policy_and_batch
from dpo.scoring import own_logps
from torch.nn.functional import logsigmoid
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from synthalign.dpo.features import image_features
from synthalign.dpo.fused import fuse
from synthalign.dpo.layouts import Rows, Tree, Trie
from synthalign.dpo.logps import pair_logps
from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import adapters_off
from synthalign.dpo.reference import AdaptersOff, Cached, FrozenCopy, Reference
from synthalign.dpo.reference_cache import Preparation

BETA = 0.1


def eager(module, query, key, value, attention_mask, scaling, **_):
    """Attend step by step in the states' own type; transformers' eager attention takes its softmax in float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * scaling
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    return (weights @ value).transpose(1, 2), None


AttentionInterface.register("eager_float64", eager)
AttentionMaskInterface.register("eager_float64", eager_mask)


def fresh(head):
    """The policy and its batch, the head frozen, trained, or one that somebody watches, which is called as it is."""
    policy, batch = policy_and_batch(llava)
    output = policy.get_base_model().get_output_embeddings()
    if head == "trained":
        output.requires_grad_(True)
    if head == "watched":
        output.register_forward_hook(lambda *_: None)
    return policy, batch


def trained(policy):
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


@pytest.fixture(scope="module")
def oracle():
    """The loss, and the gradients of the adapter and of the head."""
    policy, batch = fresh("trained")
    policy.get_base_model().set_attn_implementation("eager_float64")
    lengths = [len(side) for sides in zip(batch.chosen, batch.rejected, strict=True) for side in sides]

    def sums():
        found = torch.stack([part.sum() for part in own_logps(policy, batch).split(lengths)])
        return found[0::2] - found[1::2]

    with torch.no_grad(), adapters_off(policy):
        reference = sums()
    loss = -logsigmoid(BETA * (sums() - reference)).mean()
    names = list(trained(policy))
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, list(trained(policy).values())), strict=True))


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("reference", ["adapters off", "copy", "cached"])
@pytest.mark.parametrize("head", ["frozen", "trained", "watched"])
@pytest.mark.parametrize("layout", [Rows(), Tree(), Trie()], ids=["rows", "tree", "trie"])
def test_loss_and_gradients_are_the_oracles(layout, head, reference, fused, oracle, tmp_path):
    policy, batch = fresh(head)
    if fused:
        fuse(policy)

    def score(network, batch=batch):
        return pair_logps(network, layout(network, batch), image_features(network, batch))

    kinds: dict[str, Reference] = {
        "adapters off": AdaptersOff(),
        "copy": FrozenCopy(),
        "cached": Cached(folder=str(tmp_path)),
    }
    kind = kinds[reference]
    if reference == "copy":
        kind.begin(policy)
    pairs = [(pair_id, "as it is") for pair_id in batch.ids]
    kind.prepare(policy, lambda: Preparation(recipe={}, pairs=pairs, batches=lambda blocks: [batch], score=score))
    loss = DPO(beta=BETA)(score(policy), kind(policy, batch.ids, score)).loss.mean()
    parameters = trained(policy)
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))

    expected_loss, expected = oracle
    assert loss.item() == pytest.approx(expected_loss, rel=1e-7, abs=0)
    assert len(gradients) == 3 * 7 * 2 + (head == "trained")
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-6 * expected[name].norm(), name
