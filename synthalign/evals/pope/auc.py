"""The area under the ROC curve from counts that add up over ranks.

Margins fall into fixed bins; two margins of one bin count as a tie, which is half a win. So the result is the exact
area over all (positive, negative) pairs, off by at most half the share of pairs that meet in a bin of 1/64 nat.
"""

import math

from torch import Tensor

BIN_WIDTH = 1 / 64
"""Nats. A difference of 1/64 nat moves p(yes) by less than .004."""

LIMIT = 32.0
"""Nats. Margins beyond it, where p(yes) is within 2e-14 of 0 or 1, share the outermost bin of their side."""

BINS = round(2 * LIMIT / BIN_WIDTH)


def bin_of(margin: float) -> int:
    """Return the bin of a margin in nats: [-LIMIT + i * BIN_WIDTH, -LIMIT + (i + 1) * BIN_WIDTH) has index i."""
    return math.floor((min(max(margin, -LIMIT), LIMIT - BIN_WIDTH) + LIMIT) / BIN_WIDTH)


def auc(positives: Tensor, negatives: Tensor) -> float | None:
    """Return the share of (positive, negative) pairs in which the positive has the larger margin, ties half.

    Args:
        positives: Counts per bin of the margins whose truth is yes, shape (BINS,).
        negatives: The same where the truth is no.

    Returns:
        A number in [0, 1], or None where there is no pair.
    """
    pairs = positives.sum() * negatives.sum()
    if pairs == 0:
        return None
    below = negatives.cumsum(0) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs)
