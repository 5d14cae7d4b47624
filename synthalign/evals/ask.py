"""Who asks which questions, and the asking: every distinct question once, all questions of an image together."""

from collections.abc import Callable, Sequence
from pathlib import Path

from synthalign.tables import open_image
from synthalign.types import Policy, Question, Reply

QUESTIONS_PER_CALL = 128
"""About how many questions the policy gets at once. It cuts them into batches that fit; a call holds whole images."""


def share(questions: Sequence[Question], rank: int, world_size: int) -> list[list[Question]]:
    """Return a rank's share of the questions, by image: all of one image's questions go to one rank.

    Args:
        questions: All questions of an evaluation.
        rank: Whose share.
        world_size: How many ranks there are. Shares may differ in size, and be empty.

    Returns:
        One list per image; in it, one question may stand in several places, as POPE's do that belong to several splits.
    """
    by_image: dict[Path, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    return list(by_image.values())[rank::world_size]


def distinct(questions: Sequence[Question]) -> int:
    """Return how many distinct (image, text) pairs there are among the questions: what a policy is really asked."""
    return len({(question.image, question.text) for question in questions})


def ask(
    policy: Policy,
    images: Sequence[Sequence[Question]],
    *,
    max_new_tokens: int,
    questions_per_call: int = QUESTIONS_PER_CALL,
    progress: Callable[[int], object] = lambda asked: None,
) -> tuple[list[Question], list[Reply]]:
    """Ask a policy a share of the questions; questions with the same image and text share one reply.

    Args:
        policy: Answers greedily.
        images: Questions, image by image, as ``share`` gives them.
        max_new_tokens: Length limit of a reply, tokens.
        questions_per_call: A call is closed before the image that would exceed this many distinct questions.
        progress: Told after every call how many distinct questions were asked in it.

    Returns:
        The questions, image after image, and their replies.

    Raises:
        ValueError: An image cannot be read; or the policy gave more or fewer replies than there were questions.
    """
    asked: list[Question] = []
    replies: list[Reply] = []
    for call in _calls(images, questions_per_call):
        pairs: dict[tuple[Path, str], None] = {(q.image, q.text): None for questions in call for q in questions}
        opened = {path: open_image(path) for path in dict.fromkeys(path for path, _ in pairs)}
        answers = policy.answer(
            [opened[path] for path, _ in pairs], [text for _, text in pairs], max_new_tokens=max_new_tokens
        )
        if len(answers) != len(pairs):
            raise ValueError(f"{type(policy).__name__}.answer gave {len(answers)} replies to {len(pairs)} questions")
        known = dict(zip(pairs, answers, strict=True))
        for questions in call:
            asked += questions
            replies += [known[question.image, question.text] for question in questions]
        progress(len(pairs))
    return asked, replies


def _calls(images: Sequence[Sequence[Question]], limit: int) -> list[list[Sequence[Question]]]:
    calls: list[list[Sequence[Question]]] = []
    room = 0
    for questions in images:
        size = distinct(questions)
        if not calls or size > room:
            calls.append([])
            room = limit
        calls[-1].append(questions)
        room -= size
    return calls
