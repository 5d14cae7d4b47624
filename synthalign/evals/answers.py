"""Answers that were saved before, matched with the questions they belong to: by id, one to one, or not at all."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthalign.tables import json_rows
from synthalign.types import Question, Reply

IDS = ("question_id", "id")
OURS = "reply"
"""Field of the raw reply in our own samples; what stands beside it there was read from it."""

TEXTS = (OURS, "text", "answer", "response", "output", "model_answer", "caption")
SHOWN = 3
"""Ids that a message names."""


def read_answers(file: Path, *, ids: Sequence[str] = IDS, texts: Sequence[str] = TEXTS) -> dict[str, Reply]:
    """Read saved answers by their ids, JSON lines or one JSON array.

    Args:
        file: The answers. Rows of our own samples keep their margin and whether they were cut off.
        ids: Fields that may hold the id, the first found counts; a whole number is read as its digits.
        texts: Fields that may hold the answer. Of our own samples it is ``reply``; of others' only one of them may be
            there, since the other might be the question or the key. An empty answer is an answer.

    Raises:
        ValueError: The file is malformed or empty, a row has no id or no answer or might have two, or an id stands
            twice.
    """
    found: dict[str, Reply] = {}
    for where, row in json_rows(file):
        number = _id(row, ids, where)
        if number in found:
            raise ValueError(f"{where}: a second answer to {number!r}; ids must differ")
        found[number] = Reply(_text(row, texts, where), _truncated(row, where), _margin(row, where))
    if not found:
        raise ValueError(f"{file}: no answers; the file is empty")
    return found


def matched(questions: Sequence[Question], answers: Mapping[str, Reply], source: Path) -> list[Reply]:
    """Return the answer to every question, in the questions' order.

    Args:
        questions: All that are to be answered.
        answers: By the questions' own ids.
        source: Where the answers are from, for messages.

    Raises:
        ValueError: A question has no answer, or an answer no question; both are counted, some of them named. Or the
            answers are the questions over again: a question file was given for them.
    """
    asked = {question.id for question in questions}
    missing = [question.id for question in questions if question.id not in answers]
    foreign = [answer for answer in answers if answer not in asked]
    if missing or foreign:
        wrong = [f"{len(missing)} of {len(asked)} questions have no answer ({_some(missing)})"] if missing else []
        wrong += [f"{len(foreign)} answers belong to no question ({_some(foreign)})"] if foreign else []
        raise ValueError(f"{source}: {'; '.join(wrong)}; is it the file of these questions?")
    replies = [answers[question.id] for question in questions]
    if questions and _echo(questions, replies):
        raise ValueError(f"{source}: every answer is its question over again; give the file of the answers")
    return replies


def _id(row: dict[str, Any], ids: Sequence[str], where: str) -> str:
    """Read the id; a table's 1.0 is the 1 it was before another row's was missing."""
    key = next((key for key in ids if row.get(key) is not None), None)
    if key is None:
        raise ValueError(f"{where}: no id; it must stand in {' or '.join(map(repr, ids))}")
    number = row[key]
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if type(number) not in (int, str) or number == "":
        raise ValueError(f"{where}: {key!r} must be a whole number or text, found {number!r}")
    return str(number)


def _text(row: dict[str, Any], texts: Sequence[str], where: str) -> str:
    there = [key for key in texts if row.get(key) is not None]
    if not there:
        raise ValueError(f"{where}: no answer; it must stand in one of {', '.join(map(repr, texts))}")
    if len(there) > 1 and there[0] != OURS:
        raise ValueError(
            f"{where}: which is the answer, {' or '.join(map(repr, there))}? Keep it alone, or call it {OURS!r}"
        )
    text = row[there[0]]
    if not isinstance(text, str):
        raise ValueError(f"{where}: {there[0]!r} must be text, found {text!r}")
    return text


def _truncated(row: dict[str, Any], where: str) -> bool:
    truncated = row.get("truncated")
    if truncated is not None and not isinstance(truncated, bool):
        raise ValueError(f"{where}: 'truncated' must be true or false, found {truncated!r}")
    return bool(truncated)


def _margin(row: dict[str, Any], where: str) -> float | None:
    margin = row.get("yes_margin")
    if margin is None:
        return None
    number = float(str(margin)) if type(margin) in (int, float) else math.nan  # as text: no int is too large then
    if math.isnan(number):
        raise ValueError(f"{where}: 'yes_margin' must be a number or null, found {margin!r}")
    return number


def _echo(questions: Sequence[Question], replies: Sequence[Reply]) -> bool:
    """Whether every reply is its question, but for the one suffix that an evaluation may have put after them all."""
    pairs = [(question.text, reply.text) for question, reply in zip(questions, replies, strict=True)]
    return all(said and text.startswith(said) for text, said in pairs) and (
        len({text.removeprefix(said) for text, said in pairs}) == 1
    )


def _some(ids: Sequence[str]) -> str:
    """Name some ids, quoted: a blank at the end of one may be what is wrong."""
    return ", ".join(map(repr, ids[:SHOWN])) + (", …" if len(ids) > SHOWN else "")
