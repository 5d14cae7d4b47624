"""Which pairs say the same twice: by hand, on odd texts."""
# ruff: noqa: RUF001 - the signs are meant

import pytest

from synthalign.pairs import Identical, NearIdentical
from synthalign.types import Drop, PickedPair

QUESTION = "What is in the image?"


@pytest.mark.parametrize(
    ("chosen", "rejected", "same"),
    [
        ("A cat.", "a  cat", True),
        ("“A cat”", "A cat!", True),
        ("STRASSE", "straße", True),
        ("Cafe\u0301", "Café", True),
        ("`cat`", "_cat_", True),
        ("so\u00adfa", "sofa", True),  # a soft hyphen is not seen
        ("A cat.", "A cats.", False),
        ("2 < 3", "2 > 3", False),
        ("$5", "€5", False),
        ("कि", "का", False),  # the same consonant with another vowel sign
        ("猫。", "犬。", False),
        ("café", "cafe", False),
        ("don't", "dont", False),
        ("-5 °C", "5 °C", False),
        ("-5 °C", "+5 °C", False),
        ("3.5", "35", False),
        ("3.5", "3 5", False),
        ("1:30", "1.30", False),
        ("50%", "50", False),
        ("C#", "C", False),
        ("# A cat", "A cat", True),  # a heading
        ("2 - a cat", "2 a cat", True),
    ],
)
def test_responses_that_differ_in_case_punctuation_and_spacing_are_identical(chosen, rejected, same):
    for first, second in ((chosen, rejected), (rejected, chosen)):
        drop = Identical()(PickedPair(QUESTION, first, second, 1.0))
        assert drop == (Drop("identical", f"both say {first!r}") if same else None)


@pytest.mark.parametrize(
    ("chosen", "rejected", "near"),
    [
        ("A red cup.", "The red cup", True),
        ("There's a dog", "There is a dog!", True),
        ("It isn’t open", "It is not open", True),
        ("He can't see", "He cannot see", True),
        ("In the image, a man is clearly running.", "A man is running", True),
        ("A man is very tall in this picture", "A man is tall", True),
        ("A red cup", "A red cup", True),
        ("It is open", "It isn't open", False),
        ("He can see", "He can't see", False),
        ("A red cup", "A blue cup", False),
        ("Two cups", "Three cups", False),
        ("2 cups", "3 cups", False),
        ("on the table", "under the table", False),
        ("with a hat", "without a hat", False),
        ("A cup", "Cups", False),
        ("A few cups", "Few cups", False),
        ("The dog bites the man", "The man bites the dog", False),
        ("In the picture book", "In the book", False),
        ("-5", "5", False),
        ("the", "a", False),  # nothing is left to compare
        ("", "", False),
    ],
)
def test_responses_that_differ_in_fillers_only_are_nearly_identical(chosen, rejected, near):
    for first, second in ((chosen, rejected), (rejected, chosen)):
        drop = NearIdentical()(PickedPair(QUESTION, first, second))
        assert drop == (Drop("near_identical", f"only fillers differ: {first!r}, {second!r}") if near else None)


def test_what_is_filler_is_a_setting():
    pair = PickedPair("Was ist das?", "Das ist eine rote Tasse", "Das ist die rote Tasse")
    assert NearIdentical()(pair) is None
    assert NearIdentical(filler=("eine", "die"))(pair) is not None
