"""Answers to POPE that were saved before: by id in every split, or in the questions' order with the questions beside.

The authors' own answers have no ids, and LLaVA's have those of another file for all splits together. In both, each
answer stands beside its question, so that their order can be checked.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from synthalign.evals.answers import IDS, matched, read_answers
from synthalign.tables import field, json_rows
from synthalign.types import Question, Reply

ASKED = ("question", "prompt")
"""Fields that a row may have the question in."""

FORM = "is there a"
"""How POPE's questions begin; what begins otherwise may be a prompt of any kind around one."""

IMAGE_SUFFIX = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?)$", re.IGNORECASE)


def replies_in(files: Mapping[str, Path], asked: Mapping[str, Sequence[Question]], suffix: str) -> list[Reply]:
    """Return the answer to every question, split after split, in the questions' order.

    Args:
        files: Of each split, its answers; one file may hold several splits.
        asked: The questions of every split; their ids are ``split/id``, since ids begin again in every split.
        suffix: What stands after every question.

    Raises:
        ValueError: A split has no file, a file is malformed, the answers do not belong to the questions one to one, or
            a row names another image.
    """
    if foreign := [split for split in files if split not in asked]:
        raise ValueError(
            f"{files[foreign[0]]}: answers to a split {foreign[0]!r}; the questions' are {', '.join(asked)}"
        )
    if missing := [split for split in asked if asked[split] and split not in files]:
        raise ValueError(f"no answers to the split {missing[0]!r}; there are some to {', '.join(files) or 'none'}")
    replies: dict[str, Reply] = {}
    for file in dict.fromkeys(files.values()):
        replies |= _replies(file, {split: asked[split] for split in asked if files.get(split) == file}, suffix)
    return [replies[question.id] for questions in asked.values() for question in questions]


def _replies(file: Path, asked: Mapping[str, Sequence[Question]], suffix: str) -> dict[str, Reply]:
    """Return the answers of one file by the questions' ids; ``asked`` holds the questions of each of its splits."""
    rows = list(json_rows(file))
    if rows and not any(row.get(key) is not None for _, row in rows for key in IDS):
        return _in_order(file, rows, [Reply(field(row, "answer", where)) for where, row in rows], asked, suffix)
    answers = read_answers(file)
    questions = {question.id: question for split in asked.values() for question in split}
    if not answers.keys() & questions.keys():
        if len(asked) > 1:
            return _in_order(file, rows, list(answers.values()), asked, suffix)
        (split,) = asked
        answers = {f"{split}/{one}": reply for one, reply in answers.items()}
    replies = matched(list(questions.values()), answers, file)
    for (where, row), answered in zip(rows, answers, strict=True):
        _check_question(row, questions[answered], where, suffix)
        _check_image(row, questions[answered], where)
    return dict(zip(questions, replies, strict=True))


def _in_order(
    file: Path,
    rows: Sequence[tuple[str, dict[str, Any]]],
    replies: Sequence[Reply],
    asked: Mapping[str, Sequence[Question]],
    suffix: str,
) -> dict[str, Reply]:
    """Match answers with questions by their order, whichever split comes first, each checked by its question's text."""
    texts = [_bare(_asked_in(row, where), suffix) for where, row in rows]
    if len(rows) != (count := sum(len(questions) for questions in asked.values())):
        raise ValueError(f"{file}: {len(rows)} answers to {count} questions; in their order there must be one to each")
    order: list[Question] = []
    rest = {split: [_bare(question.text, suffix) for question in questions] for split, questions in asked.items()}
    while rest:
        agreeing = {split: _num_agreeing(texts[len(order) :], wanted) for split, wanted in rest.items()}
        split = max(rest, key=lambda split: (agreeing[split] == len(rest[split]), agreeing[split]))
        if agreeing[split] < len(rest[split]):
            where, row = rows[len(order) + agreeing[split]]
            raise ValueError(
                f"{where}: an answer to {_alone(_asked_in(row, where), suffix)!r} where the question is "
                f"{_alone(asked[split][agreeing[split]].text, suffix)!r}; answers without the questions' ids must be "
                "in the order of the questions"
            )
        order += asked[split]
        del rest[split]
    for (where, row), question in zip(rows, order, strict=True):
        _check_image(row, question, where)
    return {question.id: reply for question, reply in zip(order, replies, strict=True)}


def _num_agreeing(texts: Sequence[str], wanted: Sequence[str]) -> int:
    """Return how many of the first texts are as wanted."""
    pairs = zip(texts, wanted, strict=False)
    return next((number for number, (text, want) in enumerate(pairs) if text != want), len(wanted))


def _asked_in(row: Mapping[str, Any], where: str) -> str:
    for key in ASKED:
        if isinstance(row.get(key), str):
            return str(row[key])
    raise ValueError(
        f"{where}: neither an id of the questions nor a 'question' to check the order by; give every row its "
        "question_id, and every split its file"
    )


def _alone(text: str, suffix: str) -> str:
    """Strip what asks for a form of answer: our suffix, or what others put on a line of its own."""
    return text.removesuffix(suffix).strip().split("\n")[0].strip()


def _bare(text: str, suffix: str) -> str:
    """Return what questions are compared by."""
    return _alone(text, suffix).lower().replace("imange", "image")  # as the authors' first files say before a vowel


def _check_question(row: Mapping[str, Any], question: Question, where: str, suffix: str) -> None:
    """Refuse a row that repeats another question than its id's: ids begin again in every split."""
    said = next((row[key] for key in ASKED if isinstance(row.get(key), str)), "")
    if _bare(said, suffix).startswith(FORM) and _bare(said, suffix) != _bare(question.text, suffix):
        raise ValueError(
            f"{where}: an answer to {_alone(said, suffix)!r}, but {question.id} asks "
            f"{_alone(question.text, suffix)!r}; of another split?"
        )


def _check_image(row: Mapping[str, Any], question: Question, where: str) -> None:
    """Refuse a row that names another image than its question; folders and file suffixes may be left out."""
    if not isinstance(row.get("image"), str):
        return
    named, meant = (PurePath(IMAGE_SUFFIX.sub("", str(one))).parts for one in (row["image"], question.image))
    shared = min(len(named), len(meant))
    if not shared or named[-shared:] != meant[-shared:]:
        raise ValueError(
            f"{where}: about the image {row['image']!r}, but {question.id} is about {question.image.name!r}"
        )
