"""Who sees whom in a packed row, told by walking up each branch; and attention that follows it."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from synthalign.dpo.attention import Packed, Run, packed_attention
from synthalign.dpo.attention_cuda import mask_mod, varlen_index
from synthalign.vlm.attention import NotCarriedError

# Two trees. In the first an image of 4 tokens has two questions below it, each with two responses, one of them empty;
# the second is a prompt with two responses.
RUNS = [
    Run(0, 4, 14, (), 4),
    Run(4, 6, 10, ((0, 4),), 5),
    Run(6, 9, 9, ((0, 4), (4, 6)), 6),
    Run(9, 10, 10, ((0, 4), (4, 6)), 9),
    Run(10, 11, 14, ((0, 4),), 10),
    Run(11, 14, 14, ((0, 4), (10, 11)), 11),
    Run(14, 19, 24, (), 18),
    Run(19, 22, 22, ((14, 19),), 19),
    Run(22, 24, 24, ((14, 19),), 22),
]
BLOCKS = torch.tensor([-1, 0, 0, -1, *[-1] * 10, 0, 0, 1, 1, -1, *[-1] * 5])
WINDOWS = [None, 3]


def branch(place):
    """The tokens from a token's root to itself."""
    run = next(run for run in RUNS if run.start <= place < run.end)
    above = [token for span in run.ancestors for token in range(*span)]
    return above + list(range(run.start, place + 1))


def walked(blocks, window):
    """The mask by walking up from every token."""
    seen = torch.zeros(24, 24, dtype=torch.bool)
    for token in range(24):
        seen[token, branch(token)] = True
        for run in RUNS:
            for other in range(run.start, run.end):
                if run.start <= token < run.end and blocks is not None and blocks[token] == blocks[other] >= 0:
                    seen[token, other] = True
        if window is not None:
            for other in range(24):
                seen[token, other] &= len(branch(token)) - len(branch(other)) < window
    return seen


def drawn(width):
    """Query, key and value; the last two have half as many heads."""
    noise = torch.Generator().manual_seed(0)
    heads = (4, 2, 2)
    query, key, value = (torch.randn(1, n, 24, width, dtype=torch.float64, generator=noise) for n in heads)
    return query, key, value


@pytest.fixture
def states():
    query, key, value = drawn(8)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def plain(states, mask):
    query, key, value = states
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3).transpose(1, 2)


class Layer(torch.nn.Module):
    layer_idx = 5


def attend(states, packed, **besides):
    query, key, value = states
    return packed_attention(Layer(), query, key, value, None, scaling=0.3, packed=packed, **besides)[0]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("blocks", [None, BLOCKS], ids=["causal", "blocks"])
def test_the_mask_is_what_walking_up_the_branches_gives(blocks, window):
    packed = Packed(RUNS, blocks)
    assert torch.equal(packed.dense(window), walked(blocks, window))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("blocks", [None, BLOCKS], ids=["causal", "blocks"])
def test_flex_attentions_mask_is_the_dense_one(blocks, window):
    sees = mask_mod(Packed(RUNS, blocks), window, "cpu")
    places = torch.arange(24)
    assert torch.equal(sees(None, None, places[:, None], places[None]), walked(blocks, window))


@pytest.mark.parametrize("window", WINDOWS)
def test_variable_length_sequences_see_what_the_mask_says(window):
    index = varlen_index(Packed(RUNS))
    seen = torch.zeros(24, 24, dtype=torch.bool)
    for queries, keys in zip(index.query_ends.unfold(0, 2, 1), index.key_ends.unfold(0, 2, 1), strict=True):
        num_queries, own = int(queries[1] - queries[0]), index.keys[keys[0] : keys[1]]
        assert num_queries <= index.max_queries and len(own) <= index.max_keys
        for number, token in enumerate(range(*queries.tolist())):
            last = len(own) - num_queries + number  # causal from the last token backwards
            seen[token, own[max(0, last + 1 - (window or 24)) : last + 1]] = True
    assert torch.equal(seen, walked(None, window))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("blocks", [None, BLOCKS], ids=["causal", "blocks"])
def test_output_and_gradients_are_those_under_a_dense_mask(blocks, window, states):
    expected = plain(states, walked(blocks, window))
    packed = Packed(RUNS, blocks)
    found = attend(states, packed, sliding_window=window)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((found * weights).sum(), states)
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weights).sum(), states), rtol=1e-11, atol=1e-13)


def test_the_last_layer_attends_only_where_states_are_read(states):
    packed = Packed(RUNS, last_layer=5)
    read = packed.read.tolist()
    assert read == [5, *range(6, 14), *range(18, 24)]  # no image, of a prompt its last token, responses whole
    found = attend(states, packed)
    expected = plain(states, walked(None, None))
    torch.testing.assert_close(found[:, read], expected[:, read], rtol=1e-12, atol=1e-14)
    assert found.isfinite().all()
    weights = torch.randn_like(expected[:, read])
    ours = torch.autograd.grad((found[:, read] * weights).sum(), states)
    theirs = torch.autograd.grad((expected[:, read] * weights).sum(), states)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def test_in_bfloat16_parts_are_merged_in_float32(states):
    low = [one.detach().bfloat16() for one in states]
    exact = plain([one.double() for one in low], walked(None, None))
    merged = attend(low, Packed(RUNS))
    whole = plain(low, walked(None, None))
    assert (merged - exact).abs().mean() < 1.2 * (whole - exact).abs().mean()


@pytest.mark.parametrize("besides", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"dropout": 0.1}])
def test_attention_that_does_more_is_not_carried(besides, states):
    with pytest.raises(NotCarriedError, match="its attention"):
        attend(states, Packed(RUNS), **besides)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("blocks", [None, BLOCKS], ids=["varlen", "flex"])
def test_on_cuda_output_and_gradients_are_those_under_a_dense_mask(blocks, window):
    query, key, value = (one.bfloat16().cuda() for one in drawn(64))
    states = (query.requires_grad_(), key.requires_grad_(), value.requires_grad_())
    exact = tuple(one.detach().double().requires_grad_() for one in states)
    expected = plain(exact, walked(blocks, window).cuda())
    packed = Packed(RUNS, blocks)
    found = attend(states, packed, sliding_window=window)
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((found * weights.bfloat16()).sum(), states)
    for mine, other in zip(ours, torch.autograd.grad((expected * weights).sum(), exact), strict=True):
        assert (mine.double() - other).norm() < 0.02 * other.norm()
