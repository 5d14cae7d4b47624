"""What the stages work on: pictures to draw, and questions asked about them, each named by what it holds."""

from collections.abc import Iterable
from typing import NamedTuple

from synthalign.store import digest
from synthalign.tables import PromptRow


class Picture(NamedTuple):
    """One image to be had. ``key`` names its id and its prompt."""

    key: str
    id: str
    prompt: str


class Asked(NamedTuple):
    """One question about a picture. ``key`` names its id, the picture's prompt and the question."""

    key: str
    id: str
    question: str
    picture: Picture


def pictures(rows: Iterable[PromptRow]) -> list[Picture]:
    """Return the pictures of some prompts."""
    return [Picture(digest([row.id, row.prompt]), row.id, row.prompt) for row in rows]


def questions(rows: Iterable[PromptRow]) -> list[Asked]:
    """Return the questions of some prompts."""
    asked = []
    for row in rows:
        [picture] = pictures([row])
        for number, question in enumerate(row.questions):
            question_id = f"{row.id}/{number}"
            asked.append(Asked(digest([question_id, row.prompt, question]), question_id, question, picture))
    return asked
