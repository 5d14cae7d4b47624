import itertools
import random

import pytest
import torch

from synthalign.evals.pope.auc import BIN_WIDTH, BINS, LIMIT, auc, bin_of


def binned(margins):
    return torch.bincount(torch.tensor([bin_of(margin) for margin in margins]), minlength=BINS).double()


def pairwise(positives, negatives):
    wins = [(p > n) + (p == n) / 2 for p, n in itertools.product(positives, negatives)]
    return sum(wins) / len(wins)


def test_margins_that_lie_on_the_bins_give_the_exact_area():
    rng = random.Random(0)
    positives = [rng.randint(-100, 200) * BIN_WIDTH for _ in range(80)]
    negatives = [rng.randint(-200, 100) * BIN_WIDTH for _ in range(50)]
    assert auc(binned(positives), binned(negatives)) == pytest.approx(pairwise(positives, negatives), abs=1e-12)


def test_any_margins_are_off_by_at_most_half_the_share_of_pairs_that_meet_in_a_bin():
    rng = random.Random(1)
    positives = [rng.gauss(0.5, 1) for _ in range(200)]
    negatives = [rng.gauss(-0.5, 1) for _ in range(200)]
    meet = sum(bin_of(p) == bin_of(n) for p, n in itertools.product(positives, negatives)) / 200**2
    assert 0 < meet < 0.01
    error = auc(binned(positives), binned(negatives)) - pairwise(positives, negatives)
    assert 0 < abs(error) <= meet / 2


def test_a_tie_is_half_a_win():
    assert auc(binned([1.0]), binned([1.0])) == 0.5


def test_without_a_pair_there_is_no_area():
    assert auc(binned([1.0]), torch.zeros(BINS)) is None
    assert auc(torch.zeros(BINS), binned([1.0])) is None


@pytest.mark.parametrize(
    ("margin", "index"),
    [
        (-LIMIT, 0),
        (float("-inf"), 0),
        (-1e9, 0),
        (0.0, BINS // 2),
        (BIN_WIDTH, BINS // 2 + 1),
        (BIN_WIDTH * 0.999, BINS // 2),
        (-1e-9, BINS // 2 - 1),
        (LIMIT, BINS - 1),
        (float("inf"), BINS - 1),
    ],
)
def test_a_margin_falls_into_its_bin_and_beyond_the_limit_into_the_last(margin, index):
    assert bin_of(margin) == index
