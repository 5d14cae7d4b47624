"""Bytes alive and operations are counted as one counts them by hand."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import linear

from synthalign.plan import Live


def test_what_is_freed_no_longer_counts_and_the_peak_stays():
    with Live() as live:
        first = torch.zeros(10, 10)  # 400 bytes
        second = first + 1
        del first
        third = second * 2
        del second, third
    assert (live.peak, live.now) == (800, 0)


def test_views_and_what_is_written_in_place_take_nothing():
    with Live() as live:
        whole = torch.zeros(10, 10)
        whole.t().add_(1)
        whole.view(100)[3:].mul_(2)
    assert live.peak == 400


def test_what_was_there_before_does_not_count():
    before = torch.zeros(10, 10)
    with Live() as live:
        before.add_(1)
        del before
    assert live.peak == 0


def test_a_real_weight_among_fakes_takes_nothing():
    weight = torch.nn.Parameter(torch.zeros(7, 5), requires_grad=False)
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        x = torch.empty(3, 5)
        linear(x, weight)
    assert live.peak == 4 * (3 * 5 + 3 * 7)


def test_autograd_keeps_what_it_needs_and_lets_go():
    x = torch.ones(100, requires_grad=True)
    with Live() as live:
        with live.during("forward"):
            y = x.exp().exp().sum()  # each keeps its result
        assert live.now == 2 * 400 + 4
        with live.during("backward"):
            y.backward()
        del y
        assert live.now == 400  # the gradient


def test_operations_are_two_for_each_product_and_sum():
    x, weight = torch.zeros(3, 5), torch.zeros(7, 5, requires_grad=True)
    with Live() as live:
        with live.during("forward"):
            y = linear(x, weight).sum()
        with live.during("backward"):
            y.backward()
    assert live.operations == {"forward": 2 * 3 * 5 * 7, "backward": 2 * 3 * 5 * 7}


def test_a_convolution_has_two_gradients():
    x, weight = torch.zeros(1, 3, 4, 4, requires_grad=True), torch.zeros(5, 3, 2, 2, requires_grad=True)
    with Live() as live:
        with live.during("forward"):
            y = torch.nn.functional.conv2d(x, weight, stride=2).sum()
        with live.during("backward"):
            y.backward()
    once = 2 * (5 * 2 * 2) * (3 * 2 * 2)
    assert live.operations == {"forward": once, "backward": 2 * once}


def test_causal_attention_is_half_of_whole_attention():
    query = torch.zeros(1, 2, 6, 8)
    counts = []
    for causal in (False, True):
        with Live() as live:
            torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=causal)
        counts.append(live.operations[""])
    assert counts == [4 * 2 * 8 * 36, 4 * 2 * 8 * 21]
