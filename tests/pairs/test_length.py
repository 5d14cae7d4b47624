"""Which pairs are too unequal in length."""
# ruff: noqa: RUF001 - the signs are meant

import pytest

from synthalign.pairs import LengthRatio
from synthalign.types import Drop, PickedPair

QUESTION = "What is in the image?"


@pytest.mark.parametrize(
    ("chosen", "rejected", "detail"),
    [
        (1, 100, None),  # one word counts as ten
        (1, 101, "1 words against 101: ratio 0.099 is outside 0.1 to 10"),
        (101, 1, "101 words against 1: ratio 10.1 is outside 0.1 to 10"),
        (11, 110, None),
        (11, 111, "11 words against 111: ratio 0.0991 is outside 0.1 to 10"),
        (1, 1, None),
        (0, 0, None),
    ],
)
def test_lengths_must_be_within_a_ratio_of_ten_either_way(chosen, rejected, detail):
    drop = LengthRatio()(PickedPair(QUESTION, "cat " * chosen, "cat " * rejected))
    assert drop == (Drop("length_ratio", detail) if detail else None)


def test_the_window_and_the_floor_are_settings():
    twice = PickedPair(QUESTION, "cat " * 40, "cat " * 20)
    assert LengthRatio(max_ratio=2.0)(twice) is None
    assert LengthRatio(max_ratio=1.9)(twice) is not None
    assert LengthRatio(min_ratio=1.0, max_ratio=2.0)(twice._replace(chosen="cat " * 19)) is not None
    assert LengthRatio(max_ratio=1.9, floor=22)(twice) is None


def test_where_no_spaces_are_set_letters_are_counted():
    assert LengthRatio()(PickedPair("图里有什么？", "猫" * 101, "狗")) is not None
    assert LengthRatio()(PickedPair("图里有什么？", "猫" * 100, "狗")) is None


@pytest.mark.parametrize("wrong", [{"min_ratio": 1.1}, {"min_ratio": -1.0}, {"max_ratio": 0.9}, {"floor": 0}])
def test_a_window_without_equal_lengths_is_refused(wrong):
    with pytest.raises(ValueError, match="LengthRatio needs min_ratio <= 1 <= max_ratio and floor >= 1, got"):
        LengthRatio(**wrong)
