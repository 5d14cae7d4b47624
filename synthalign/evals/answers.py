"""Answers that were saved before, matched with the questions they belong to: by id, one to one, or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from synthalign.tables import json_rows
from synthalign.types import Question, Reply

IDS = ("question_id", "id")
TEXTS = ("text", "answer", "reply", "response", "output", "model_answer", "caption")
SHOWN = 3
"""Ids that a message names."""


def read_answers(file: Path, *, ids: Sequence[str] = IDS, texts: Sequence[str] = TEXTS) -> dict[str, Reply]:
    """Read saved answers by their ids, JSON lines or one JSON array.

    Args:
        file: The answers. Rows of our own samples keep their margin and whether they were cut off.
        ids: Fields that may hold the id, the first found counts; a number is read as its digits.
        texts: Fields that may hold the answer, the first found counts; an empty answer is an answer.

    Raises:
        ValueError: The file is malformed or empty, a row has no id or no answer, or an id stands twice.
    """
    found: dict[str, Reply] = {}
    for where, row in json_rows(file):
        number = next((row[key] for key in ids if row.get(key) is not None), None)
        if type(number) not in (int, str):
            raise ValueError(f"{where}: no id; one of {', '.join(ids)} must be a number or text")
        text = next((row[key] for key in texts if row.get(key) is not None), None)
        if not isinstance(text, str):
            raise ValueError(f"{where}: no answer; one of {', '.join(texts)} must be text")
        if str(number) in found:
            raise ValueError(f"{where}: a second answer to {number!r}; ids must differ")
        margin = row.get("yes_margin")
        found[str(number)] = Reply(
            text, row.get("truncated") is True, float(margin) if isinstance(margin, int | float) else None
        )
    if not found:
        raise ValueError(f"{file}: no answers")
    return found


def matched(questions: Sequence[Question], answers: Mapping[str, Reply], source: Path) -> list[Reply]:
    """Return the answer to every question, in the questions' order.

    Args:
        questions: All that are to be answered.
        answers: By the questions' own ids.
        source: Where the answers are from, for messages.

    Raises:
        ValueError: A question has no answer, or an answer no question; both are counted, some of them named.
    """
    asked = {question.id for question in questions}
    missing = [question.id for question in questions if question.id not in answers]
    foreign = [answer for answer in answers if answer not in asked]
    if missing or foreign:
        wrong = [f"{len(missing)} of {len(asked)} questions have no answer ({_some(missing)})"] if missing else []
        wrong += [f"{len(foreign)} answers belong to no question ({_some(foreign)})"] if foreign else []
        raise ValueError(f"{source}: {'; '.join(wrong)}; is it the file of these questions?")
    return [answers[question.id] for question in questions]


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")
