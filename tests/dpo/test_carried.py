"""A layout is trusted where it gives a model's own numbers, and nowhere else."""

import pytest
import torch
from dpo.nine import NINE, gemma3, llava, policy_and_batch

from synthalign.dpo import families, layouts
from synthalign.dpo.carried import take, why_not_carried
from synthalign.dpo.features import image_features
from synthalign.dpo.layouts import Rows, Tree, Trie

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:transformers"),
]


def reason(policy, batch, layout):
    return why_not_carried(layout, policy, batch, image_features(policy, batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", NINE, ids=lambda family: family.__name__)
def test_nine_families_are_carried(family, dtype):
    policy, batch = policy_and_batch(family, dtype)
    assert [reason(policy, batch, layout) for layout in (Rows(), Tree(), Trie())] == [None] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_wrong_positions_are_found_out(dtype, monkeypatch):
    policy, batch = policy_and_batch(llava, dtype)
    right = families.positions
    monkeypatch.setattr(families, "positions", lambda *args: 3 * right(*args))
    assert "its log-probs are off by" in reason(policy, batch, Tree())


def test_a_block_that_is_taken_for_causal_is_found_out(monkeypatch):
    policy, batch = policy_and_batch(gemma3, torch.float32)
    monkeypatch.setattr(layouts, "blocks", lambda network, prompt: torch.full_like(prompt["input_ids"], -1))
    assert "its log-probs are off by" in reason(policy, batch, Tree())


def test_what_a_models_make_up_tells_is_refused_by_name():
    policy, batch = policy_and_batch(llava)
    config = policy.get_base_model().config.get_text_config()
    config.layer_types = ["full_attention", "linear_attention"]
    assert reason(policy, batch, Tree()) == "it has layers of linear_attention"
    config.layer_types = None
    config.attn_logit_softcapping = 30.0
    assert reason(policy, batch, Trie()) == "it bounds its attention's logits"
    config.attn_logit_softcapping = None
    for prompt in batch.prompts:
        prompt["token_type_ids"] = torch.zeros_like(prompt["input_ids"])
    assert reason(policy, batch, Tree()) == "its processor gives token_type_ids for each token"


def test_a_part_of_a_batch_has_its_images_still():
    _, batch = policy_and_batch(llava)
    part = take(batch, [2, 1])
    assert (part.ids, part.image_of, part.image_ids) == (["c", "b"], [0, 1], ["x", "y"])
    assert part.images is batch.images


@pytest.mark.parametrize("layout", [Rows(), Tree()], ids=["rows", "tree"])
def test_a_model_that_does_more_to_its_logits_is_refused(layout):
    policy, batch = policy_and_batch(llava)
    base = policy.get_base_model()
    own = base.forward

    def warmer(**inputs):
        output = own(**inputs)
        output.logits = output.logits * 0.5
        return output

    base.forward = warmer
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration makes its logits in a way that is not support"):
        reason(policy, batch, layout)
