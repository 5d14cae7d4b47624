"""Which two of the scored responses a rule picks, by hand."""

import math
from collections import Counter

import pytest

from synthalign.pairs import BestRandom, BestWorst, Margin

TEN = [0.5, 2.0, -1.0, 2.0, 1.5, 0.0, 1.99, -3.0, 1.0, 0.25]


@pytest.mark.parametrize(
    ("scores", "pair"),
    [
        ([0.1, 0.9, -0.5], (1, 2)),
        ([2.0, 1.0], (0, 1)),
        ([1.0, 3.0, 3.0, 1.0], (1, 0)),  # ties go to the first
        ([-1.0, -2.0, -3.0, -0.5, -9.0], (3, 4)),
        ([0.5, 0.5, 0.5], None),
        ([0.5], None),
        ([], None),
    ],
)
def test_the_best_is_chosen_and_the_worst_rejected(scores, pair):
    assert BestWorst()(scores, 0) == pair


@pytest.mark.parametrize(
    ("scores", "pair"),
    [
        ([2.0, 1.0], (0, 1)),
        ([1.0, 3.0, 3.0], (1, 0)),  # what ties with the best is not below it
        ([0.5, 0.5], None),
        ([0.5], None),
        ([], None),
    ],
)
def test_with_one_lower_score_the_random_one_is_that(scores, pair):
    assert BestRandom()(scores, 0) == pair


def test_the_random_one_is_every_lower_one_about_as_often_and_fixed_by_the_seed():
    picked = [BestRandom()(TEN, seed) for seed in range(900)]
    assert picked == [BestRandom()(TEN, seed) for seed in range(900)]
    chosen, rejected = zip(*filter(None, picked), strict=True)
    assert set(chosen) == {1}
    counts = Counter(rejected)
    assert set(counts) == {0, 2, 4, 5, 6, 7, 8, 9}
    # 900 draws among 8: 112.5 each, standard deviation 9.9.
    assert all(abs(count - 112.5) < 40 for count in counts.values())


def test_the_random_one_is_the_same_on_every_machine():
    assert [BestRandom()(TEN, seed) for seed in (0, 1, 2**63 - 1)] == [(1, 8), (1, 4), (1, 7)]


@pytest.mark.parametrize(
    ("scores", "min_margin", "pair"),
    [
        (TEN, 0.5, (1, 4)),  # 1.99 and the other 2.0 are too near
        (TEN, 0.501, (1, 8)),
        (TEN, 0.0, (1, 6)),  # a tie is no pair, whatever the margin
        (TEN, 5.0, (1, 7)),
        (TEN, 5.001, None),
        ([1.0, 0.0, 0.0], 1.0, (0, 1)),  # ties go to the first
        ([1.0, 1.0], 0.0, None),
        ([1.0], 0.0, None),
        ([], 0.0, None),
    ],
)
def test_the_near_miss_is_the_best_that_is_far_enough_below(scores, min_margin, pair):
    assert Margin(min_margin=min_margin)(scores, 0) == pair


@pytest.mark.parametrize("min_margin", [-0.1, math.inf, math.nan])
def test_a_margin_that_cannot_be_meant_is_refused(min_margin):
    with pytest.raises(ValueError, match="Margin: min_margin must be a number >= 0, got"):
        Margin(min_margin=min_margin)
