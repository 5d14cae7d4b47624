"""AMBER's arithmetic: what a description's nouns say against its annotation, and the figures from sums.

As in junyangwang0410/AMBER at 534babf, inference.py, with the equality of words in the place of spaCy's similarity.
The oddities are the original's: every count of cases begins at 0.001, that of attributes, a sum of three, at 0.003;
and F1 comes from precision and recall rounded to a tenth of a percent, with a small number in its denominator.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

OFFSETS = "official: counts divided by n + 0.001 (attribute: n + 0.003), so all right comes to a little less than 100 %"
"""What a reader must know to take 99.9 % of a few questions for what it is."""

START = 0.001
"""What the original counts cases from; it keeps its quotients finite."""

ATTRIBUTE_START = 0.003
F1_START = 0.0001
"""What the original adds to the denominator of F1."""

EXISTENCE_F1_START = 0.001


class Reading(NamedTuple):
    """What a description's nouns come to."""

    invented: list[str]
    """Nouns that neither the image's objects, nor words related to them, nor safe words allow."""

    covered: list[int]
    """Which of the image's objects are mentioned, by their places in the annotation."""

    expected: list[int]
    """Which of the objects that one would expect, and that are not there, are mentioned."""


def read_nouns(
    nouns: Sequence[str],
    truth: Sequence[str],
    hallu: Sequence[str],
    related: Mapping[str, Sequence[str]],
    safe: Collection[str],
) -> Reading:
    """Hold the nouns of a description against its annotation.

    A noun covers the first object it is related to, or else the first it names.

    Args:
        nouns: Words of the vocabulary, as often as they are mentioned.
        truth: Objects in the image.
        hallu: Objects that are not, and that a model may well invent.
        related: Words that mean an object too.
        safe: Words that are allowed everywhere, and cover nothing.
    """
    there, absent = _places(truth, related), _places(hallu, related)
    invented: list[str] = []
    covered: set[int] = set()
    expected: set[int] = set()
    for noun in nouns:
        if noun in safe:
            continue
        if noun in there:
            covered.add(there[noun])
            continue
        if noun in absent:
            expected.add(absent[noun])
        invented.append(noun)
    return Reading(invented, sorted(covered), sorted(expected))


def generative_rates(count: Mapping[str, float]) -> dict[str, float]:
    """Return CHAIR, Cover, Hal and Cog as shares, and the mean number of words.

    Args:
        count: Sums over descriptions: ``n``, ``n_clean`` (nothing invented), ``nouns``, ``invented``, ``objects``,
            ``covered``, ``traps`` (objects that one would expect), ``trapped``, ``words``.
    """
    return {
        "chair": share(count["invented"], count["nouns"]),
        "cover": share(count["covered"], count["objects"]),
        "hal": 1 - share(count["n_clean"], count["n"]) if count["n"] else 0.0,
        "cog": share(count["trapped"], count["traps"]),
        "words": count["words"] / max(count["n"], 1),
    }


def discriminative_rates(group: str, count: Mapping[str, float]) -> dict[str, float]:
    """Return accuracy, and precision, recall and F1 of the answer No.

    Args:
        group: Which dimension; attribute's counts and existence's F1 begin where no others do.
        count: Sums over questions: ``n``, ``n_correct``, ``n_no`` (truth is no), ``n_said_no``, ``n_both`` (of these).
    """
    start = ATTRIBUTE_START if group == "attribute" else START
    precision = share(count["n_both"], count["n_said_no"], start)
    recall = share(count["n_both"], count["n_no"], start)
    p, r = round(100 * precision, 1) / 100, round(100 * recall, 1) / 100
    return {
        "accuracy": share(count["n_correct"], count["n"], start),
        "precision": precision,
        "recall": recall,
        "f1": 2 * p * r / (p + r + (EXISTENCE_F1_START if group == "existence" else F1_START)),
    }


def share(part: float, whole: float, start: float = START) -> float:
    """Return a quotient as the original does: 0 of 0 is 0."""
    return part / (whole + start)


def _places(objects: Sequence[str], related: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return which object each word stands for: related words come before the objects' own names."""
    places: dict[str, int] = {}
    for place, name in enumerate(objects):
        for word in related[name]:
            places.setdefault(word, place)
    for place, name in enumerate(objects):
        places.setdefault(name, place)
    return places
