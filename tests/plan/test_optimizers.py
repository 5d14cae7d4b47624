"""What an optimizer keeps is found by trying it."""

from functools import partial

import pytest
import torch

from synthalign.plan import optimizer_cost


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (torch.optim.AdamW, 8),
        (partial(torch.optim.AdamW, amsgrad=True), 12),
        (torch.optim.SGD, 0),
        (partial(torch.optim.SGD, momentum=0.9), 4),
    ],
)
def test_torchs_optimizers_keep_whole_copies(make, state):
    assert optimizer_cost(make, torch.float32, foreach=False).state == state


def test_an_optimizer_of_8_bits_keeps_a_quarter():
    from bitsandbytes.optim import AdamW8bit

    cost = optimizer_cost(AdamW8bit, torch.float32, foreach=False)
    # two moments of a byte each, and a scale of four for 256 of either; codes of 1 KiB for each parameter besides
    assert cost.state == pytest.approx(2 * (1 + 4 / 256), rel=0.02)
    assert cost.name == "AdamW8bit"


def test_adamw_needs_a_copy_more_where_it_takes_all_parameters_at_once():
    at_once, one_by_one = (optimizer_cost(torch.optim.AdamW, torch.float32, foreach=one) for one in (True, False))
    assert at_once.update == pytest.approx(4, rel=0.01) and one_by_one.update == 0


def test_half_precision_is_kept_in_half_precision():
    assert optimizer_cost(torch.optim.AdamW, torch.bfloat16, foreach=False).state == 4
