"""Log-probs equal the plain ones, whatever the padding, the batch and the chunks, and never keep the logits."""

import math

import pytest
import torch
from dpo.drawn_pairs import FOUR, draw
from dpo.plain import plain_logps
from torch.nn.functional import logsigmoid
from transformers import AutoModelForImageTextToText

from synthalign.dpo.batch import collate
from synthalign.dpo.logps import pair_logps, sequence_logps, token_logps
from synthalign.dpo.policy import adapters_off


def plain_pairs(network, processor):
    """Chosen and rejected sums, and counts, of FOUR the plain way."""
    images, questions = [draw(pair.drawing) for pair in FOUR], [pair.question for pair in FOUR]
    sides = ([pair.chosen for pair in FOUR], [pair.rejected for pair in FOUR])
    (chosen, chosen_tokens), (rejected, rejected_tokens) = (
        plain_logps(network, processor, images, questions, said) for said in sides
    )
    return chosen, rejected, chosen_tokens, rejected_tokens


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-9), ("float32", 1e-6)])
def test_policy_and_reference_equal_a_plain_forward(dtype, rtol, tiny_llava, make_policy, processor, chat, four):
    policy, batch = make_policy(dtype), collate(four, chat)
    bare = AutoModelForImageTextToText.from_pretrained(tiny_llava, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        ours = pair_logps(policy, batch)
        with adapters_off(policy):
            reference = pair_logps(policy, batch)
        plain, plain_reference = plain_pairs(policy, processor), plain_pairs(bare, processor)
    assert ours.chosen.dtype == reference.rejected.dtype == getattr(torch, dtype)
    for mine, other in ((ours, plain), (reference, plain_reference)):
        for logps, plain_sum in zip(mine[:2], other[:2], strict=True):
            torch.testing.assert_close(logps, plain_sum, rtol=rtol, atol=0)
        for count, plain_count in zip(mine[2:], other[2:], strict=True):
            assert torch.equal(count, plain_count)
    assert (ours.chosen - reference.chosen).abs().min() > 0.1  # nats: the adapter does something


def test_gradients_of_the_adapter_equal_those_of_a_plain_forward(make_policy, processor, chat, four):
    policy = make_policy("float64")
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}

    def gradients(chosen, rejected):
        loss = -logsigmoid(0.1 * (chosen - rejected)).mean()
        return torch.autograd.grad(loss, list(trained.values()))

    ours = gradients(*pair_logps(policy, collate(four, chat))[:2])
    plain = gradients(*plain_pairs(policy, processor)[:2])
    for name, mine, other in zip(trained, ours, plain, strict=True):
        assert other.norm() > 0, name
        assert (mine - other).norm() <= 1e-9 * other.norm(), name


def test_exchanging_the_answers_exchanges_their_logps(make_policy, chat, four):
    policy = make_policy()
    swapped = [pair._replace(chosen=pair.rejected, rejected=pair.chosen) for pair in four]
    with torch.no_grad():
        here, there = pair_logps(policy, collate(four, chat)), pair_logps(policy, collate(swapped, chat))
    assert torch.equal(here.chosen, there.rejected) and torch.equal(here.rejected, there.chosen)
    assert torch.equal(here.chosen_tokens, there.rejected_tokens)


def test_neither_padding_nor_the_rest_of_the_batch_changes_a_pair(make_policy, chat, four):
    policy = make_policy("float64")
    with torch.no_grad():
        together = pair_logps(policy, collate(four, chat))
        backwards = pair_logps(policy, collate(four[::-1], chat))
        alone = [pair_logps(policy, collate([pair], chat)) for pair in four]
    lengths = {collate([pair], chat).chosen.response_mask.shape[1] for pair in four}
    assert len(lengths) == 4  # so that all but one were padded
    for side in ("chosen", "rejected"):
        own = torch.cat([getattr(one, side) for one in alone])
        torch.testing.assert_close(getattr(together, side), own, rtol=1e-12, atol=0)
        torch.testing.assert_close(getattr(backwards, side), own.flip(0), rtol=1e-12, atol=0)


def test_another_image_changes_the_logps_of_its_pair_alone(make_policy, chat, four):
    policy = make_policy()
    other = [four[0]._replace(image=draw("white square on black")), *four[1:]]
    with torch.no_grad():
        here, there = pair_logps(policy, collate(four, chat)), pair_logps(policy, collate(other, chat))
    for side in ("chosen", "rejected"):
        change = (getattr(here, side) - getattr(there, side)).abs()
        assert change[0] > 0.1  # nats
        assert change[1:].max() < 1e-4


@pytest.fixture(scope="module")
def scored():
    """Hidden states (N, D), an output embedding and targets, with N no multiple of a chunk."""
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False, dtype=torch.float64)
    return torch.randn(23, 8, dtype=torch.float64, requires_grad=True), head, torch.randint(50, (23,))


@pytest.mark.parametrize("chunk_tokens", [1, 7, 23, 256])
def test_chunks_change_neither_value_nor_gradient(chunk_tokens, scored):
    hidden, head, targets = scored
    whole = (hidden @ head.weight.T).log_softmax(-1)[torch.arange(23), targets]
    chunked = token_logps(hidden, head, targets, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=0)
    weights = torch.linspace(-1, 1, 23, dtype=torch.float64)
    inputs = (hidden, head.weight)
    ours = torch.autograd.grad((chunked * weights).sum(), inputs)
    plain = torch.autograd.grad((whole * weights).sum(), inputs)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-15)


def test_no_more_than_a_chunk_of_logits_exists_at_a_time(scored):
    hidden, head, targets = scored
    rows: list[int] = []
    with_hook = torch.nn.Sequential(head)
    with_hook.register_forward_hook(lambda module, args, logits: rows.append(len(logits)))
    token_logps(hidden, with_hook, targets, chunk_tokens=7).sum().backward()
    assert rows[:4] == [7, 7, 7, 2]  # forward
    assert sorted(rows[4:]) == [2, 7, 7, 7]  # and once more in the backward pass


def test_no_logits_are_kept_for_the_backward_pass(make_policy, processor, chat, four):
    policy, batch = make_policy(), collate(four, chat)
    size = policy.get_base_model().get_output_embeddings().out_features
    kept: list[tuple[int, ...]] = []

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    def of_vocabulary():
        return [shape for shape in kept if len(shape) > 1 and shape[-1] == size]

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sequence_logps(policy, batch.images, batch.chosen)
    assert len(kept) > 10
    assert of_vocabulary() == []
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        plain_pairs(policy, processor)
    assert of_vocabulary() != []  # so the count would have found them


def test_bfloat16_logits_are_reduced_in_float32():
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 4000, bias=False, dtype=torch.bfloat16)
    hidden, targets = torch.randn(100, 64, dtype=torch.bfloat16), torch.randint(4000, (100,))
    logits = head(hidden).detach()
    exact = logits.double().log_softmax(-1)[torch.arange(100), targets]
    ours = token_logps(hidden, head, targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)
    in_bfloat16 = logits.log_softmax(-1)[torch.arange(100), targets].double()
    assert (in_bfloat16 - exact).abs().max() > 1e-3  # which is what must not happen


def test_a_bfloat16_policy_sums_in_float32(make_policy, chat, four):
    with torch.no_grad():
        logps = pair_logps(make_policy("bfloat16"), collate(four, chat))
    assert logps.chosen.dtype == logps.rejected.dtype == torch.float32


def test_a_softcap_bounds_the_logits():
    head = torch.nn.Linear(1, 2, bias=False)
    torch.nn.init.ones_(head.weight[:1])
    torch.nn.init.zeros_(head.weight[1:])
    logps = token_logps(torch.tensor([[9.0]]), head, torch.tensor([0]), softcap=2.0)
    squashed = 2 * math.tanh(9 / 2)
    assert logps.item() == pytest.approx(squashed - math.log(math.exp(squashed) + 1), rel=1e-6)


def test_a_model_that_scales_its_logits_is_refused(make_policy, chat, four):
    policy = make_policy()
    policy.get_base_model().config.get_text_config().logit_scale = 0.0625
    with pytest.raises(ValueError, match=r"LlavaForConditionalGeneration scales its logits by 0\.0625"):
        pair_logps(policy, collate(four, chat))
