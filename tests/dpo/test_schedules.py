"""The schedule, by hand."""

import math

import pytest

from synthalign.dpo.schedules import WarmupCosine


def test_ten_steps_by_hand():
    # 2 of 10 steps rise, to 1 at the third; the other 8 fall along half a cosine from 1 to 0.1
    schedule = WarmupCosine(warmup_ratio=0.2, floor=0.1)
    expected = [1 / 3, 2 / 3] + [0.1 + 0.9 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]
    assert [schedule(step, 10) for step in range(10)] == pytest.approx(expected)
    assert expected[6] == pytest.approx(0.55)  # half-way down


def test_it_never_starts_at_zero_and_never_exceeds_one():
    for num_steps in (1, 2, 7, 1000):
        values = [WarmupCosine()(step, num_steps) for step in range(num_steps)]
        assert values[0] > 0 and max(values) == (1.0 if num_steps > 1 else 0.5)


def test_it_ends_at_its_floor_and_stays_there():
    schedule = WarmupCosine(floor=0.25)
    assert schedule(40, 40) == schedule(500, 40) == 0.25


def test_without_warm_up_it_starts_at_one():
    assert WarmupCosine(warmup_ratio=0.0)(0, 5) == 1.0


def test_warm_up_rounds_up_to_whole_steps():
    # 3 % of 40 steps are 1.2, so two steps rise
    values = [WarmupCosine(warmup_ratio=0.03)(step, 40) for step in range(4)]
    assert values[:3] == pytest.approx([1 / 3, 2 / 3, 1.0]) and values[3] < 1


@pytest.mark.parametrize("settings", [{"warmup_ratio": 1.0}, {"warmup_ratio": -0.1}, {"floor": 1.5}, {"floor": -0.1}])
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(ValueError, match="must be in"):
        WarmupCosine(**settings)
