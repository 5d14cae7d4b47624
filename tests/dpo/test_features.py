"""An image is encoded once: in a batch, and over batches where it is kept."""

import pytest
import torch
from dpo.nine import llava, policy_and_batch, qwen3_vl
from dpo.scoring import logps_of

from synthalign.dpo.features import image_features
from synthalign.dpo.layouts import Tree
from synthalign.dpo.logps import pair_logps
from synthalign.vlm import KeptFeatures

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:transformers")


def tower_calls(policy):
    core = policy.get_base_model().model
    calls: list[int] = []
    tower = core.vision_tower if hasattr(core, "vision_tower") else core.visual
    tower.register_forward_hook(lambda *_: calls.append(1))
    return calls


def names(kept):
    return {name for name, _ in kept.known}


@pytest.mark.parametrize("family", [llava, qwen3_vl], ids=["llava", "qwen3_vl"])
def test_kept_features_spare_the_tower_and_change_nothing(family):
    policy, batch = policy_and_batch(family)
    calls, kept = tower_calls(policy), KeptFeatures(1.0)
    first = pair_logps(policy, Tree()(policy, batch), image_features(policy, batch, kept))
    again = pair_logps(policy, Tree()(policy, batch), image_features(policy, batch, kept))
    assert calls == [1] and names(kept) == {"pair x", "pair y"}
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_no_more_is_kept_than_there_is_room_for():
    policy, batch = policy_and_batch(llava)
    one = 4 * 64 * 8  # bytes: tokens of an image, width, float64
    kept = KeptFeatures(1.5 * one / 2**30)
    image_features(policy, batch, kept)
    assert names(kept) == {"pair x"}
    assert kept.room == one // 2
    calls = tower_calls(policy)
    image_features(policy, batch, kept)
    assert calls == [1]  # "y" is not known


def test_a_frozen_tower_leaves_no_graph():
    policy, batch = policy_and_batch(llava)
    features = image_features(policy, batch)
    assert not features.inputs([0])["mm_encoder_outputs"]["image"].pooler_output[0].requires_grad


def test_a_trained_projector_gets_its_gradient_and_nothing_is_kept():
    policy, batch = policy_and_batch(llava)
    projector = policy.get_base_model().model.multi_modal_projector.requires_grad_(True)
    kept = KeptFeatures(1.0)
    pair_logps(policy, Tree()(policy, batch), image_features(policy, batch, kept)).chosen.sum().backward()
    assert not kept.known
    assert all(parameter.grad.norm() > 0 for parameter in projector.parameters())


def test_a_prompt_with_too_few_places_for_its_image_is_an_error():
    policy, batch = policy_and_batch(llava)
    batch.prompts[1]["input_ids"] = batch.prompts[1]["input_ids"][batch.prompts[1]["input_ids"] != 290]
    with pytest.raises(ValueError, match="4 places in the prompts are for images, which fill 8"):
        logps_of(policy, batch)
