"""Log-probs equal the plain ones, whatever the padding, the batch and the chunks, and never keep the logits."""

import pytest
import torch
from dpo.drawn_pairs import FOUR, draw
from dpo.plain import plain_logps
from dpo.scoring import logps_of
from torch.nn.functional import logsigmoid
from transformers import AutoModelForImageTextToText

from synthalign.dpo.batch import collate
from synthalign.dpo.layouts import Rows, Tree, Trie
from synthalign.dpo.policy import adapters_off

LAYOUTS = pytest.mark.parametrize("layout", [Rows(), Tree(), Trie()], ids=["rows", "tree", "trie"])


def plain_pairs(network, processor):
    """Chosen and rejected sums, and counts, of FOUR the plain way."""
    images, questions = [draw(pair.drawing) for pair in FOUR], [pair.question for pair in FOUR]
    sides = ([pair.chosen for pair in FOUR], [pair.rejected for pair in FOUR])
    (chosen, chosen_tokens), (rejected, rejected_tokens) = (
        plain_logps(network, processor, images, questions, said) for said in sides
    )
    return chosen, rejected, chosen_tokens, rejected_tokens


@LAYOUTS
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-7), ("float32", 1e-6)])
def test_policy_and_reference_equal_a_plain_forward(
    layout, dtype, rtol, tiny_llava, make_policy, processor, chat, four
):
    policy, batch = make_policy(dtype), collate(four, chat)
    bare = AutoModelForImageTextToText.from_pretrained(tiny_llava, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        ours = logps_of(policy, batch, layout)
        with adapters_off(policy):
            reference = logps_of(policy, batch, layout)
        plain, plain_reference = plain_pairs(policy, processor), plain_pairs(bare, processor)
    assert ours.chosen.dtype == reference.rejected.dtype == getattr(torch, dtype)
    for mine, other in ((ours, plain), (reference, plain_reference)):
        for logps, plain_sum in zip(mine[:2], other[:2], strict=True):
            torch.testing.assert_close(logps, plain_sum, rtol=rtol, atol=0)
        for count, plain_count in zip(mine[2:], other[2:], strict=True):
            assert torch.equal(count, plain_count)
    assert (ours.chosen - reference.chosen).abs().min() > 0.1  # nats: the adapter does something


@LAYOUTS
def test_gradients_of_the_adapter_equal_those_of_a_plain_forward(layout, make_policy, processor, chat, four):
    policy = make_policy("float64")
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}

    def gradients(chosen, rejected):
        loss = -logsigmoid(0.1 * (chosen - rejected)).mean()
        return torch.autograd.grad(loss, list(trained.values()))

    ours = gradients(*logps_of(policy, collate(four, chat), layout)[:2])
    plain = gradients(*plain_pairs(policy, processor)[:2])
    for name, mine, other in zip(trained, ours, plain, strict=True):
        assert other.norm() > 0, name
        assert (mine - other).norm() <= 1e-6 * other.norm(), name


@LAYOUTS
def test_exchanging_the_answers_exchanges_their_logps(layout, make_policy, chat, four):
    policy = make_policy()
    swapped = [pair._replace(chosen=pair.rejected, rejected=pair.chosen) for pair in four]
    with torch.no_grad():
        here, there = logps_of(policy, collate(four, chat), layout), logps_of(policy, collate(swapped, chat), layout)
    torch.testing.assert_close(here[:2], there[1::-1], rtol=1e-5, atol=0)
    assert torch.equal(here.chosen_tokens, there.rejected_tokens)


@LAYOUTS
def test_neither_padding_nor_the_rest_of_the_batch_changes_a_pair(layout, make_policy, chat, four):
    policy = make_policy("float64")
    with torch.no_grad():
        together = logps_of(policy, collate(four, chat), layout)
        backwards = logps_of(policy, collate(four[::-1], chat), layout)
        alone = [logps_of(policy, collate([pair], chat), layout) for pair in four]
    batch = collate(four, chat)
    lengths = [len(p["input_ids"]) + len(c) for p, c in zip(batch.prompts, batch.chosen, strict=True)]
    assert len(set(lengths)) == 4  # so that, as rows, all but one were padded
    for side in ("chosen", "rejected"):
        own = torch.cat([getattr(one, side) for one in alone])
        torch.testing.assert_close(getattr(together, side), own, rtol=1e-9, atol=0)
        torch.testing.assert_close(getattr(backwards, side), own.flip(0), rtol=1e-9, atol=0)


@LAYOUTS
def test_another_image_changes_the_logps_of_its_pair_alone(layout, make_policy, chat, four):
    policy = make_policy()
    other = [four[0]._replace(image=draw("white square on black")), *four[1:]]
    with torch.no_grad():
        here, there = logps_of(policy, collate(four, chat), layout), logps_of(policy, collate(other, chat), layout)
    for side in ("chosen", "rejected"):
        change = (getattr(here, side) - getattr(there, side)).abs()
        assert change[0] > 0.1  # nats
        assert change[1:].max() < 1e-4


@LAYOUTS
def test_no_logits_are_kept_for_the_backward_pass(layout, make_policy, processor, chat, four):
    policy, batch = make_policy(), collate(four, chat)
    size = policy.get_base_model().get_output_embeddings().out_features
    kept: list[tuple[int, ...]] = []

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    def of_vocabulary():
        return [shape for shape in kept if len(shape) > 1 and shape[-1] == size]

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logps_of(policy, batch, layout)
    assert len(kept) > 10
    assert of_vocabulary() == []
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        plain_pairs(policy, processor)
    assert of_vocabulary() != []  # so the count would have found them


def test_a_bfloat16_policy_sums_in_float32(make_policy, chat, four):
    with torch.no_grad():
        logps = logps_of(make_policy("bfloat16"), collate(four, chat))
    assert logps.chosen.dtype == logps.rejected.dtype == torch.float32


def test_a_model_that_scales_its_logits_is_refused(make_policy, chat, four):
    policy = make_policy()
    policy.get_base_model().config.get_text_config().logit_scale = 0.0625
    with pytest.raises(ValueError, match=r"LlavaForConditionalGeneration scales its logits by 0\.0625"):
        logps_of(policy, collate(four, chat))
