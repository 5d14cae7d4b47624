"""Which pairs have scores that do not tell the better response."""

import pytest

from synthalign.pairs import Disagreement, TooClose
from synthalign.types import Drop, PickedPair

QUESTION = "What is in the image?"
GATE = Disagreement(blind="text", aware="judge")


@pytest.mark.parametrize(
    ("margin", "min_margin", "detail"),
    [
        (0.5, 0.0, None),
        (0.0, 0.0, "margin 0 is not above 0"),
        (-1.0, 0.0, "margin -1 is not above 0"),
        (0.5, 0.5, "margin 0.5 is not above 0.5"),
        (0.5000001, 0.5, None),
        (float("nan"), 0.0, "margin nan is not above 0"),
        (None, 5.0, None),
    ],
)
def test_a_margin_must_be_above_the_least(margin, min_margin, detail):
    drop = TooClose(min_margin=min_margin)(PickedPair(QUESTION, "a", "b", margin))
    assert drop == (Drop("too_close", detail) if detail else None)


@pytest.mark.parametrize(
    ("text", "judge", "agree"),
    [
        (1.0, 2.0, True),
        (-1.0, -2.0, True),
        (0.0, 2.0, True),
        (0.0, 0.0, True),
        (1.0, -0.001, False),
        (-0.001, 1.0, False),
        (1e-300, -1e-300, False),  # their product is zero
        (float("nan"), 1.0, False),
        (1.0, float("nan"), False),
    ],
)
def test_margins_of_opposite_sign_disagree(text, judge, agree):
    drop = GATE(PickedPair(QUESTION, "a", "b", 1.0, {"text": text, "judge": judge, "other": -9.0}))
    assert drop == (None if agree else Drop("disagreement", f"margin {text:.4g} by text, {judge:.4g} by judge"))


def test_the_image_aware_margin_can_have_a_least_of_its_own():
    strict = Disagreement(blind="text", aware="judge", min_aware=0.5)
    assert strict(PickedPair(QUESTION, "a", "b", 1.0, {"text": 1.0, "judge": 0.5})) is None
    assert strict(PickedPair(QUESTION, "a", "b", 1.0, {"text": 1.0, "judge": 0.49})) is not None
    assert strict(PickedPair(QUESTION, "a", "b", 1.0, {"text": -1.0, "judge": -0.6})) is not None


@pytest.mark.parametrize(
    ("margins", "message"),
    [
        ({"text": 1.0, "jugde": 1.0}, "no margin by 'judge'; the pair was scored by 'text', 'jugde'"),
        ({}, "no margin by 'text'; the pair was scored by no part of a mixture"),
    ],
)
def test_a_name_that_no_part_has_is_refused_with_those_there_are(margins, message):
    with pytest.raises(ValueError, match=message):
        GATE(PickedPair(QUESTION, "a", "b", 1.0, margins))


@pytest.mark.parametrize("margin", [float("nan"), float("inf")])
def test_a_margin_that_no_pair_could_have_is_refused(margin):
    with pytest.raises(ValueError, match="TooClose: min_margin must be a finite number, got"):
        TooClose(min_margin=margin)
