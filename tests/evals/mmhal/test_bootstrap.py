from itertools import product

import numpy as np
import pytest

from synthalign.evals.mmhal.bootstrap import interval_of_mean


@pytest.mark.parametrize("counts", [[1, 0, 2, 1], [2, 3], [0, 1, 0, 0, 0, 4], [5, 0, 0]])
def test_the_interval_is_that_of_all_resamplings_written_out(counts):
    ratings = [rating for rating, count in enumerate(counts) for _ in range(count)]
    means = [sum(drawn) / len(ratings) for drawn in product(ratings, repeat=len(ratings))]
    expected = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    assert interval_of_mean(counts) == pytest.approx(tuple(expected))


def test_the_interval_of_a_benchmark_is_that_of_many_resamplings():
    counts = [25, 13, 20, 14, 12, 8, 4]
    drawn = np.random.default_rng(0).multinomial(96, np.array(counts) / 96, 100_000) @ np.arange(7) / 96
    low, high = interval_of_mean(counts)
    assert low == pytest.approx(np.quantile(drawn, 0.025), abs=1.1 / 96)
    assert high == pytest.approx(np.quantile(drawn, 0.975), abs=1.1 / 96)


def test_ratings_that_are_all_alike_have_an_interval_of_no_width():
    assert interval_of_mean([0, 0, 7]) == (2, 2)
