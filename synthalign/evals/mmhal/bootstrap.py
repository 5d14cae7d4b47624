"""How far a mean of few ratings may be trusted: the percentile bootstrap, without drawing."""

from collections.abc import Sequence

import numpy as np

COVERED = 0.95
ROUNDING = 1e-12
"""By which sums of probabilities may miss a bound that they reach."""


def interval_of_mean(counts: Sequence[float]) -> tuple[float, float]:
    """Return the bootstrap's 95 % percentile interval of the mean of n ratings 0, 1, 2 and so on.

    Drawing n of n ratings with replacement makes their sum a sum of n independent draws, whose distribution is the
    n-fold convolution of their shares. So the interval is that of endlessly many resamplings: it needs no seed, and
    depends on the counts alone. Source: Efron and Tibshirani 1993, chapter 13.

    Args:
        counts: How often each rating came; of n > 0 ratings together.

    Returns:
        The smallest means that 2.5 % and 97.5 % of the resampled means do not exceed.
    """
    n = round(sum(counts))
    assert n > 0
    power, sums, left = np.asarray(counts, dtype=np.float64) / n, np.ones(1), n
    while left:  # by squaring
        if left % 2:
            sums = np.convolve(sums, power)
        left //= 2
        power = np.convolve(power, power) if left else power
    reached = sums.cumsum() + ROUNDING
    low, high = (int(np.searchsorted(reached, bound)) for bound in ((1 - COVERED) / 2, (1 + COVERED) / 2))
    return low / n, high / n
