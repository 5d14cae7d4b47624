"""Attention to shared and own keys, merged, is attention to all of them; rows come, go and grow without a trace."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from synthalign.vlm import cache as cache_module
from synthalign.vlm.attention import NotCarriedError, merge, part, part_by_hand, refuse_unknown
from synthalign.vlm.cache import Place, SharedCache, Stems

HEADS, GROUPS, WIDTH = 4, 2, 8


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def whole(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One row's last queries over all its keys, causally: (H, Q, E), (G, K, E)."""
    key, value = (one.repeat_interleave(HEADS // GROUPS, 0) for one in (key, value))
    num, total = query.shape[1], key.shape[1]
    seen = torch.arange(total) <= torch.arange(total - num, total)[:, None]
    return scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=seen)[0]


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_a_part_and_its_log_sum_exp_are_the_formulas(scaling):
    query, key, value = noise(3, HEADS, 5, WIDTH), noise(3, GROUPS, 7, WIDTH), noise(3, GROUPS, 7, WIDTH)
    bias = torch.where(torch.rand(3, 1, 5, 7) < 0.5, 0.0, -torch.inf).double()
    bias[..., 0] = 0.0
    for given in (None, bias):
        output, lse = part(query, key, value, scaling, given)
        for head in range(HEADS):
            products = query[:, head] @ key[:, head // 2].transpose(1, 2) * (scaling or WIDTH**-0.5)
            products = products if given is None else products + given[:, 0]
            torch.testing.assert_close(lse[:, head], products.exp().sum(-1).log())
            torch.testing.assert_close(output[:, head], products.softmax(-1) @ value[:, head // 2])


def test_the_formula_for_other_devices_gives_what_this_one_gives():
    query, key, value = noise(3, GROUPS, 5, WIDTH), noise(3, GROUPS, 7, WIDTH), noise(3, GROUPS, 7, WIDTH)
    bias = torch.zeros(3, 1, 5, 7, dtype=torch.float64).masked_fill_(torch.rand(3, 1, 5, 7) < 0.3, -torch.inf)
    bias[..., 2] = 0.0
    for given in (None, bias):
        for scaling in (None, 0.2):
            for one, other in zip(
                part(query, key, value, scaling, given), part_by_hand(query, key, value, scaling, given), strict=True
            ):
                torch.testing.assert_close(one, other)
    half = part_by_hand(query.bfloat16(), key.bfloat16(), value.bfloat16(), None, None)
    assert (half[0].dtype, half[1].dtype) == (torch.bfloat16, torch.float32)


def test_parts_are_merged_to_the_attention_over_both():
    query, key, value = noise(2, GROUPS, 3, WIDTH), noise(2, GROUPS, 9, WIDTH) * 5, noise(2, GROUPS, 9, WIDTH)
    parts = [part(query, key[:, :, at], value[:, :, at], None) for at in (slice(0, 4), slice(4, 9))]
    torch.testing.assert_close(merge(parts[0], parts[1]), part(query, key, value, None)[0])
    torch.testing.assert_close(merge(parts[1], parts[0]), part(query, key, value, None)[0])


def test_what_a_family_adds_to_attention_is_refused_and_what_means_nothing_is_not():
    refuse_unknown({"softcap": None, "is_causal": True}, 0.0)
    with pytest.raises(NotCarriedError, match="takes softcap"):
        refuse_unknown({"softcap": 20.0}, 0.0)
    with pytest.raises(NotCarriedError, match="drops out"):
        refuse_unknown({}, 0.1)


def test_rows_on_uneven_stems_grow_leave_and_come_twice(monkeypatch):
    """Against attention row by row over everything that a row ever was given."""
    monkeypatch.setattr(cache_module, "LEAST_ROOM", 3)
    torch.manual_seed(0)
    two, one = (Stems([noise(n, GROUPS, size, WIDTH)], [noise(n, GROUPS, size, WIDTH)]) for n, size in ((2, 5), (1, 3)))
    places = [Place(two, 0), Place(one, 0), Place(two, 0), Place(two, 1), Place(two, 0)]
    shared = SharedCache(places)
    history = [[place.stems.keys[0][place.number], place.stems.values[0][place.number]] for place in places]

    def ask(present: torch.Tensor) -> None:
        num = present.shape[1]
        query, key, value = (noise(len(history), heads, num, WIDTH) for heads in (HEADS, GROUPS, GROUPS))
        shared.extend(present)
        got = shared.attend(0, query, key, value, None)
        for row, seen in enumerate(history):
            real = present[row]
            for kind, new in enumerate((key, value)):
                seen[kind] = torch.cat([seen[kind], new[row][:, real]], 1)
            torch.testing.assert_close(got[row][:, real], whole(query[row][:, real], *seen))
        assert torch.isfinite(got).all()

    ask(torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]]).bool())
    for _ in range(5):
        ask(torch.ones(len(history), 1, dtype=torch.bool))
    rows = [4, 1, 1, 3]
    shared, history = shared.take(rows), [list(history[row]) for row in rows]
    for _ in range(5):
        ask(torch.ones(len(history), 1, dtype=torch.bool))
    shared, history = shared.take([0]), history[:1]
    ask(torch.ones(1, 1, dtype=torch.bool))


def test_a_stem_alone_is_the_stem_without_the_memory_of_the_others():
    stems = Stems([noise(3, GROUPS, 4, WIDTH)], [noise(3, GROUPS, 4, WIDTH)])
    alone = Place(stems, 1).alone()
    assert torch.equal(alone.stems.keys[0][alone.number], stems.keys[0][1])
    assert alone.stems.keys[0].untyped_storage().nbytes() * 3 == stems.keys[0].untyped_storage().nbytes()
    assert alone.alone() is alone
