"""Filled batches: each pair once an epoch, none above the limit, as many every epoch and on every rank."""

import random
from itertools import pairwise

import pytest

from synthalign.datamodules.batches import RankBatches, TrainingLoader
from synthalign.datamodules.filling import (
    FilledBatches,
    Limit,
    Load,
    batches_by_length,
    held_out_batches,
    rounded,
    units,
)

IMAGE_TOKENS = 300


def drawn(seed, num_images=60):
    """Pairs about images that have one to five each, responses of very different lengths."""
    source = random.Random(seed)
    return [
        Load(IMAGE_TOKENS + source.randint(20, 60) + int(source.lognormvariate(5, 0.7)), f"image-{image}", IMAGE_TOKENS)
        for image in range(num_images)
        for _ in range(source.choice([1, 1, 1, 2, 3, 5]))
    ]


def cost(batch, loads, shares_images):
    """Count every token of a batch, an image's once where it is shared."""
    own = sum(loads[row].tokens - loads[row].image_tokens for row in batch)
    images = [loads[row].image for row in batch]
    return own + IMAGE_TOKENS * len(set(images) if shares_images else images)


LIMITS = [
    Limit(batch_size=4, max_tokens=max_tokens, shares_images=shares_images)
    for max_tokens in (400, 1000, 2500, 9000)
    for shares_images in (False, True)
] + [Limit(batch_size=batch_size, shares_images=True) for batch_size in (1, 3, 8)]


def name(limit):
    return f"{limit.max_tokens or limit.batch_size}{'-shared' if limit.shares_images else ''}"


@pytest.fixture(params=LIMITS, ids=name)
def limit(request):
    return request.param


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_has_every_pair_once_within_the_limit_and_every_rank_as_many_batches(seed, world_size, limit):
    loads = drawn(seed)
    draw = FilledBatches(loads, limit, seed=seed, world_size=world_size)
    for epoch in range(4):
        steps = draw(epoch)
        assert len(steps) == len(draw) and {len(step) for step in steps} == {world_size}
        batches = [batch for step in steps for batch in step]
        seen = sorted(row for batch in batches for row in batch)
        if len(seen) < len(loads):  # only where nothing more can be split: every pair is a batch
            assert all(len(batch) == 1 for batch in batches)
            assert len(seen) == len(set(seen)) == len(loads) // world_size * world_size
        else:
            assert seen == list(range(len(loads)))
        for batch in batches:
            if limit.max_tokens is None:
                assert 1 <= len(batch) <= limit.batch_size
            else:
                assert len(batch) == 1 or cost(batch, loads, limit.shares_images) <= limit.max_tokens


def test_what_cannot_be_dealt_evenly_is_another_pair_in_each_epoch():
    loads = drawn(0)[:11]
    draw = FilledBatches(loads, Limit(batch_size=1, max_tokens=1), seed=0, world_size=4)
    left_out = {frozenset(range(11)) - {row for step in draw(n) for batch in step for row in batch} for n in range(12)}
    assert len(draw) == 2 and {len(rows) for rows in left_out} == {3} and len(left_out) > 6


def test_a_few_pairs_are_split_for_the_ranks():
    """Three short pairs fit in one batch; three ranks take one each, and four have nothing to do together."""
    loads = [Load(10, "a", 5)] * 3
    limit = Limit(batch_size=4, max_tokens=1000, shares_images=True)
    assert [len(FilledBatches(loads, limit, seed=0, world_size=size)) for size in (1, 2, 3, 4)] == [1, 1, 1, 0]
    assert sorted(batch for step in FilledBatches(loads, limit, seed=0, world_size=3)(0) for batch in step) == [
        [0],
        [1],
        [2],
    ]


def test_pairs_of_one_image_that_fit_are_in_one_batch(limit):
    loads = drawn(1)
    steps = FilledBatches(loads, limit, seed=1)(0)
    place = {row: number for number, (batch,) in enumerate(steps) for row in batch}
    together = 0
    for image in {load.image for load in loads}:
        rows = [row for row, load in enumerate(loads) if load.image == image]
        if limit.max_tokens is None:
            fits = len(rows) <= limit.batch_size
        else:
            fits = cost(rows, loads, shares_images=True) <= limit.max_tokens
        if limit.shares_images and fits:
            assert len({place[row] for row in rows}) == 1
            together += len(rows) > 1
    assert together or not limit.shares_images or limit in (LIMITS[1], LIMITS[8])  # limits that hold one pair


def test_splitting_for_the_ranks_tears_no_image_apart_while_others_can_be_split():
    loads = drawn(2)
    limit = Limit(batch_size=4, max_tokens=2500, shares_images=True)
    whole = {frozenset(unit.rows) for unit in units(loads, limit)}
    for world_size in (2, 3, 4):
        for step in FilledBatches(loads, limit, seed=0, world_size=world_size)(0):
            assert all(unit <= set(batch) or not unit & set(batch) for unit in whole for batch in step)


def test_a_pair_above_the_budget_is_alone():
    loads = [Load(100, "a", 50), Load(5000, "a", 50), Load(100, "b", 50)]
    steps = FilledBatches(loads, Limit(batch_size=4, max_tokens=300, shares_images=True), seed=0)(0)
    assert sorted(sorted(step[0]) for step in steps) == [[0, 2], [1]]


def test_batches_are_well_filled():
    loads = drawn(3, num_images=400)
    for shares_images, least in ((False, 0.75), (True, 0.85)):
        limit = Limit(batch_size=4, max_tokens=4000, shares_images=shares_images)
        costs = [cost(step[0], loads, shares_images) for step in FilledBatches(loads, limit, seed=0)(0)]
        assert sum(costs) / len(costs) > least * 4000
    together = FilledBatches(loads, Limit(batch_size=8, shares_images=True), seed=0)
    assert len(together) < 1.05 * len(loads) / 8  # though images have one to five pairs


def test_sharing_images_takes_fewer_batches():
    loads = drawn(3, num_images=400)
    apart, shared = (
        len(FilledBatches(loads, Limit(batch_size=4, max_tokens=4000, shares_images=sharing), seed=0))
        for sharing in (False, True)
    )
    assert shared < 0.8 * apart


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("shares_images", [False, True])
def test_the_ranks_of_a_step_have_alike_many_tokens(shares_images, world_size):
    loads = drawn(4, num_images=300)
    limit = Limit(batch_size=4, max_tokens=2500, shares_images=shares_images)
    steps = FilledBatches(loads, limit, seed=0, world_size=world_size)(0)
    costs = [[cost(batch, loads, shares_images) for batch in step] for step in steps]
    waited = sum(max(step) * world_size - sum(step) for step in costs)
    assert waited < 0.03 * sum(sum(step) for step in costs)
    assert sum(max(step) - min(step) > 0.2 * max(step) for step in costs) <= 2  # the last, partly filled ones


def test_pairs_of_a_batch_are_alike_in_length_but_batches_come_in_no_order_of_length():
    loads = drawn(5, num_images=400)
    batches = [step[0] for step in FilledBatches(loads, Limit(batch_size=4, max_tokens=2500), seed=0)(0)]
    lengths = [[loads[row].tokens for row in batch] for batch in batches]
    spans = [max(batch) - min(batch) for batch in lengths]
    everything = [load.tokens for load in loads]
    assert sum(spans) / len(spans) < 0.03 * (max(everything) - min(everything))
    means = [sum(batch) / len(batch) for batch in lengths]
    assert 0.4 < sum(one < other for one, other in pairwise(means)) / len(means) < 0.6


def test_order_and_company_are_fixed_by_seed_and_epoch_and_differ_between_them(limit):
    loads = drawn(6)
    assert FilledBatches(loads, limit, seed=7)(2) == FilledBatches(loads, limit, seed=7)(2)
    orders = [FilledBatches(loads, limit, seed=seed)(epoch) for epoch in range(3) for seed in range(3)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


def test_a_pair_meets_others_in_another_epoch():
    loads = drawn(6, num_images=400)
    draw = FilledBatches(loads, Limit(batch_size=4, max_tokens=2500), seed=0)
    one, other = ({frozenset(step[0]) for step in draw(epoch)} for epoch in (0, 1))
    assert len(one & other) < 0.1 * len(one)


def test_a_run_goes_on_at_every_position(limit):
    loads = drawn(7, num_images=12)
    for rank, world_size in ((0, 1), (1, 2)):

        def loader(rank=rank, world_size=world_size):
            draw = FilledBatches(loads, limit, seed=1, world_size=world_size)
            return TrainingLoader(range(len(loads)), batch_sampler=RankBatches(draw, rank=rank), collate_fn=list)

        whole = loader()
        whole.batch_sampler.set_epoch(2)
        batches, states = [], [whole.state_dict()]
        for batch in whole:
            batches.append(batch)
            states.append(whole.state_dict())
        assert len(batches) == len(whole)
        for given, state in enumerate(states):
            again = loader()
            again.load_state_dict(state)
            again.batch_sampler.set_epoch(2)
            assert list(again) == batches[given:]
            again.batch_sampler.set_epoch(3)
            assert len(list(again)) == len(batches)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_images", [1, 3, 60])
def test_held_out_pairs_are_each_one_ranks_once_and_every_rank_has_as_many_batches(num_images, world_size, limit):
    loads = drawn(8, num_images)
    if len(loads) < world_size:
        assert held_out_batches(loads, limit, rank=1, world_size=world_size) == [[row] for row in range(len(loads))]
        return
    ranks = [held_out_batches(loads, limit, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for share in ranks for batch in share]
    assert sorted(row for batch in batches for row in batch) == list(range(len(loads)))
    above = [
        batch
        for batch in batches
        if len(batch) > 1
        and (
            len(batch) > limit.batch_size
            if limit.max_tokens is None
            else cost(batch, loads, limit.shares_images) > limit.max_tokens
        )
    ]
    assert len(above) < world_size  # joined, where there were single pairs only


def test_batches_by_length_begin_with_the_longest(limit):
    loads = drawn(9)
    batches = batches_by_length(loads, limit)
    assert sorted(row for batch in batches for row in batch) == list(range(len(loads)))
    longest = [max(loads[row].tokens for row in batch) for batch in batches]
    assert longest[0] == max(load.tokens for load in loads)
    assert all(later <= 1.07 * earlier for earlier, later in pairwise(longest))


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (31, 31), (32, 32), (33, 34), (63, 64), (1000, 1024), (0, 0)])
def test_five_bits_are_kept(count, expected):
    assert rounded(count) == expected
    assert all(0 <= rounded(n) - n < max(n / 16, 1) for n in range(5000))
