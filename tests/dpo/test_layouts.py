"""However a batch lies before a model, nine families score it as they score it themselves, one response at a time."""

import pytest
import torch
from dpo.nine import NINE, llava, paligemma, policy_and_batch
from dpo.scoring import logps_of, own_logps

from synthalign.dpo.carried import take
from synthalign.dpo.features import image_features
from synthalign.dpo.layouts import Layout, Rows, Tree, Trie
from synthalign.dpo.logps import scored_logps
from synthalign.vlm.families import base_of

# PaliGemma compares token types by way of NumPy; transformers warns of what it does not know in tiny towers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:transformers"),
]

LAYOUTS: list[Layout] = [Rows(), Tree(), Trie()]


def named(value):
    return getattr(value, "__name__", type(value).__name__)


@pytest.fixture(scope="module", params=NINE, ids=named)
def family(request):
    """A family's policy, its batch, the log-probs of its own forward, and their gradients under random weights."""
    policy, batch = policy_and_batch(request.param)
    expected = own_logps(policy, batch)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    weights = torch.randn(len(expected), dtype=expected.dtype, generator=torch.Generator().manual_seed(2))
    return policy, batch, expected.detach(), torch.autograd.grad((expected * weights).sum(), trained), weights


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_logps_and_gradients_are_those_of_the_models_own_forward(layout, family):
    policy, batch, expected, gradients, weights = family
    found = scored_logps(policy, layout(policy, batch), image_features(policy, batch))
    assert expected.std() > 0.3  # nats: there is something to tell apart
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)
    trained = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    ours = torch.autograd.grad((found * weights).sum(), list(trained.values()))
    for name, mine, other in zip(trained, ours, gradients, strict=True):
        # norms and rotary embeddings compute in float32 inside these models, whatever their weights
        assert other.norm() > 0 and (mine - other).norm() <= 1e-6 * other.norm(), name


def test_positions_that_run_on_through_the_row_would_show(family):
    policy, batch, expected, *_ = family
    laid = Tree()(policy, batch)
    places = laid.inputs["position_ids"]
    wrong = laid._replace(inputs={**laid.inputs, "position_ids": torch.arange(places.shape[-1]).expand_as(places)})
    with torch.no_grad():
        found = scored_logps(policy, wrong, image_features(policy, batch))
    assert (found - expected).abs().max() > 0.1  # nats


def test_the_tower_runs_once_for_two_images_and_three_pairs(family):
    policy, batch, *_ = family
    core = base_of(policy).model
    tower = next(getattr(core, name) for name in ("vision_tower", "visual", "vision_model") if hasattr(core, name))
    calls = []
    handle = tower.register_forward_hook(lambda *_: calls.append(1))
    features = image_features(policy, batch)
    with torch.no_grad():
        for layout in LAYOUTS:
            scored_logps(policy, layout(policy, batch), features)
    handle.remove()
    assert calls == [1]


def test_a_row_holds_every_prompt_once_and_no_last_token():
    policy, batch = policy_and_batch(llava)

    def size(laid):
        return laid.packed.size

    prompts = [len(prompt["input_ids"]) for prompt in batch.prompts]
    responses = [len(side) for sides in zip(batch.chosen, batch.rejected, strict=True) for side in sides]
    tree, trie, rows = (layout(policy, batch) for layout in (Tree(), Trie(), Rows()))
    assert size(tree) == sum(prompts) + sum(responses) - len(responses)
    # "a" and "c" share the beginning and the image of four tokens
    assert size(trie) == size(tree) - (3 + 4)
    assert rows.inputs["input_ids"].shape == (6, max(prompts[0] + 12, prompts[1] + 10))
    assert tree.lengths == trie.lengths == rows.lengths == responses
    assert (tree.image_order, trie.image_order, rows.image_order) == ([0, 1, 0], [0, 1], [0, 0, 1, 1, 0, 0])


def test_the_same_question_twice_shares_all_but_its_last_token():
    policy, batch = policy_and_batch(llava)
    batch.prompts[2] = batch.prompts[0]
    packed = Trie()(policy, batch).packed
    assert packed is not None and packed.runs[0].end == len(batch.prompts[0]["input_ids"]) - 1
    torch.testing.assert_close(logps_of(policy, batch, Trie()), logps_of(policy, batch, Rows()), rtol=1e-7, atol=0)


def test_a_prompt_that_sees_itself_both_ways_is_never_cut():
    policy, batch = policy_and_batch(paligemma)
    trie, tree = (layout(policy, batch).inputs["input_ids"] for layout in (Trie(), Tree()))
    assert trie.shape == tree.shape  # no token is shared


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_neither_order_nor_company_changes_a_pair(layout):
    policy, batch = policy_and_batch(llava)
    with torch.no_grad():
        together = logps_of(policy, batch, layout)
        backwards = logps_of(policy, take(batch, [2, 1, 0]), layout)
        features = image_features(policy, batch)
        alone = [scored_logps(policy, layout(policy, take(batch, [pair])), features).sum() for pair in range(3)]
    for side in ("chosen", "rejected"):
        torch.testing.assert_close(getattr(together, side), getattr(backwards, side).flip(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(together.chosen + together.rejected, torch.stack(alone), rtol=1e-9, atol=0)
