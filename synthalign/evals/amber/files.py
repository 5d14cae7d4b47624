"""AMBER's files as they are published: which questions there are, and what is right about each."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from synthalign.evals.questions import image_of
from synthalign.tables import field, json_rows, json_whole, text_in
from synthalign.types import Question

GENERATIVE = "generative"
KINDS = {
    "generative": GENERATIVE,
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""The annotations' types and what we call them. Relations whose truth is no are of a type without the prefix."""

WANTED = "the folder must be the `data` of AMBER's repository"


@dataclass(frozen=True)
class Words:
    """What the benchmark knows about words."""

    related: dict[str, list[str]]
    """Of every object the words that mean it too, such as person: people, man, woman."""

    safe: frozenset[str]
    """Words that are never held against a description."""

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """Every word that counts as an object."""
        return frozenset(self.related) | {word for words in self.related.values() for word in words}


def read_words(folder: Path) -> Words:
    """Read ``relation.json`` and ``safe_words.txt``.

    Raises:
        ValueError: One is missing or not as it should be.
    """
    relation, safe = folder / "relation.json", folder / "safe_words.txt"
    for file in (relation, safe):
        _check_there(file)
    related = json_whole(relation)
    if not isinstance(related, dict) or not all(_is_words(words) for words in related.values()):
        raise ValueError(f"{relation}: must be one JSON object, a list of words for every word")
    return Words(related, frozenset(line for line in text_in(safe).split("\n") if line))


def read_questions(folder: Path, query: Path, images: Path | None, suffix: str) -> list[Question]:
    """Read the questions of a query file, in its order, each with its annotation.

    Args:
        folder: Of ``annotations.json``.
        query: One of the files in ``query``.
        images: Folder of the images; None where they are not at hand.
        suffix: Put after every yes/no question.

    Returns:
        Questions whose truth is ``{"truth": [object, ...], "hallu": [object, ...]}`` for a description, ``yes`` or
        ``no`` for all others. A file may name an object twice, and means it.

    Raises:
        ValueError: A file, a row or an image is not as it should be; the message names it.
    """
    for file in (query, folder / "annotations.json"):
        _check_there(file)
    truths = _read_annotations(folder / "annotations.json")
    questions: dict[str, Question] = {}
    for where, row in json_rows(query):
        number = _number(row, where)
        if number in questions:
            raise ValueError(f"{where}: id {number} stands twice; ids must differ")
        if number not in truths:
            raise ValueError(f"{where}: id {number} is not in {folder / 'annotations.json'}")
        kind, truth = truths[number]
        text = field(row, "query", where) + ("" if kind == GENERATIVE else suffix)
        questions[number] = Question(number, image_of(images, field(row, "image", where), where), text, kind, truth)
    if not questions:
        raise ValueError(f"{query}: no questions")
    return list(questions.values())


def _read_annotations(file: Path) -> dict[str, tuple[str, Any]]:
    truths: dict[str, tuple[str, Any]] = {}
    for where, row in json_rows(file):
        number, kind, truth = _number(row, where), KINDS.get(str(row.get("type"))), row.get("truth")
        if number in truths:
            raise ValueError(f"{where}: id {number} stands twice; ids must differ")
        if kind is None:
            raise ValueError(f"{where}: 'type' must be one of {', '.join(KINDS)}, found {row.get('type')!r}")
        if kind == GENERATIVE:
            hallu = row.get("hallu")
            if not _is_words(truth) or not _is_words(hallu):
                raise ValueError(f"{where}: 'truth' and 'hallu' must be lists of objects")
            truth = {"truth": truth, "hallu": hallu}
        elif truth not in ("yes", "no"):
            raise ValueError(f"{where}: 'truth' must be 'yes' or 'no', found {truth!r}")
        truths[number] = (kind, truth)
    return truths


def _number(row: dict[str, Any], where: str) -> str:
    number = row.get("id")
    if type(number) is not int:
        raise ValueError(f"{where}: 'id' must be a number, found {number!r}")
    return str(number)


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _check_there(file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"no such file: {file}; {WANTED}")
