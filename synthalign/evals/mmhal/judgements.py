"""Judgements that were saved before: in our own samples, or as MMHal-Bench's script leaves them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthalign.evals.answers import matched
from synthalign.evals.mmhal.benchmark import parse_rating
from synthalign.evals.mmhal.ratings import SCORES
from synthalign.tables import field, json_rows
from synthalign.types import Judgement, Question, Reply


def judgements_in(file: Path, questions: Sequence[Question] | None = None) -> list[Judgement]:
    """Read saved judgements: ``MMHal.judged`` makes verdicts of them, ``ratings.totals`` figures without types.

    Args:
        file: Our own samples of a judged evaluation; or the official script's output, a list of chat completions, one
            to each question in the questions' order.
        questions: All questions of the evaluation. Without them the judgements come in the file's order.

    Raises:
        ValueError: A row is malformed, or not judged yet; or there is not exactly one judgement to each question.
    """
    rows = list(json_rows(file))
    if not rows:
        raise ValueError(f"{file}: no judgements; the file is empty")
    if "choices" in rows[0][1]:
        judgements = [parse_rating(_said(row, where)) for where, row in rows]
        if questions is not None and len(judgements) != len(questions):
            raise ValueError(
                f"{file}: {len(judgements)} judgements, which have no ids, of the answers to {len(questions)} questions"
            )
        return judgements
    ours: dict[str, Judgement] = {}
    for where, row in rows:
        number = field(row, "id", where)
        if number in ours:
            raise ValueError(f"{where}: a second judgement of {number!r}; ids must differ")
        ours[number] = _ours(row, where)
    if questions is None:
        return list(ours.values())
    matched(questions, {number: Reply(one.text) for number, one in ours.items()}, file)
    return [ours[question.id] for question in questions]


def _said(row: dict[str, Any], where: str) -> str:
    """Return the text of a chat completion."""
    try:
        said = row["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        said = None
    if not isinstance(said, str):
        raise ValueError(f"{where}: no chat completion with a text in choices[0].message.content")
    return said


def _ours(row: dict[str, Any], where: str) -> Judgement:
    if row.get("judged") is False or ("correct" in row and row["correct"] is None):
        raise ValueError(
            f"{where}: not judged yet; give the file as answers, and a judge: synthalign score mmhal --questions FILE "
            "--answers FILE --judge-server URL --served-model NAME"
        )
    score, parsed = row.get("score"), row.get("parsed")
    if type(score) is not int or score not in range(SCORES):
        raise ValueError(f"{where}: 'score' must be a whole number from 0 to 6, found {score!r}")
    if not isinstance(parsed, bool):
        raise ValueError(f"{where}: 'parsed' must be true or false, found {parsed!r}")
    return Judgement(score, field(row, "judgement", where), parsed)
