"""Who asks which questions, and the asking: every distinct question once, all questions of an image together."""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

from synthalign.tables import open_image
from synthalign.tables.images import verify
from synthalign.types import Policy, Question, Reply

QUESTIONS_PER_CALL = 128
"""About how many questions the policy gets at once. It cuts them into batches that fit; a call holds whole images."""

Call = list[Question]
"""What the policy is asked at once: the questions of whole images, one image after another."""


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
    return len(_pairs(questions))


def check_images(questions: Sequence[Question], name: str) -> None:
    """Refuse questions about images that cannot be opened: a single one would end a run days later.

    Args:
        questions: All of an evaluation.
        name: The evaluation's, for messages.

    Raises:
        ValueError: An image is missing or unreadable.
    """
    for path in dict.fromkeys(question.image for question in questions):
        try:
            verify(path)
        except ValueError as error:
            hint = "replace it" if path.is_file() else "set its `images`, the folder of the images"
            raise ValueError(f"{name}: {error}; {hint}") from None


def ask(
    policy: Policy,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    rank: int = 0,
    world_size: int = 1,
    lockstep: bool = False,
    questions_per_call: int = QUESTIONS_PER_CALL,
    progress: Callable[[int], object] = lambda asked: None,
) -> tuple[list[Question], list[Reply]]:
    """Ask a policy a rank's share of the questions; questions with the same image and text share one reply.

    Args:
        policy: Answers greedily.
        questions: All questions of an evaluation, on every rank the same.
        max_new_tokens: Length limit of a reply, tokens.
        rank: Whose share.
        world_size: How many ranks there are.
        lockstep: Make on every rank the same number of calls, with the same number of questions in each, as a policy
            needs whose weights are spread over the ranks. Who has fewer asks some twice, or another's, for nothing.
        questions_per_call: A call is closed before the image that would exceed this many distinct questions.
        progress: Told after every call how many distinct questions were asked in it, those for nothing left out.

    Returns:
        The questions of the share, image after image, and their replies.

    Raises:
        ValueError: An image cannot be read; or the policy gave more or fewer replies than there were questions.
    """
    asked: list[Question] = []
    replies: list[Reply] = []
    calls = [
        _calls(share(questions, one, world_size), questions_per_call)
        for one in (range(world_size) if lockstep else [rank])
    ]
    mine = calls[rank if lockstep else 0]
    for number in range(max(map(len, calls))):
        together = [_pairs(of_rank[number]) for of_rank in calls if number < len(of_rank)]
        longest = max(together, key=len)
        call = mine[number] if number < len(mine) else []
        pairs = _pairs(call)
        rows = list(islice(cycle(pairs or longest), len(longest)))
        opened = {path: open_image(path) for path in dict.fromkeys(path for path, _ in rows)}
        answers = policy.answer(
            [opened[path] for path, _ in rows], [text for _, text in rows], max_new_tokens=max_new_tokens
        )
        if len(answers) != len(rows):
            raise ValueError(f"{type(policy).__name__}.answer gave {len(answers)} replies to {len(rows)} questions")
        known = dict(zip(pairs, answers, strict=False))  # what was asked for nothing stands at the end
        asked += call
        replies += [known[question.image, question.text] for question in call]
        progress(len(pairs))
    return asked, replies


def _pairs(questions: Sequence[Question]) -> list[tuple[Path, str]]:
    """What of the questions a policy gets to see, each once."""
    return list(dict.fromkeys((question.image, question.text) for question in questions))


def _calls(images: Sequence[Sequence[Question]], limit: int) -> list[Call]:
    calls: list[Call] = []
    room = 0
    for questions in images:
        size = distinct(questions)
        if not calls or size > room:
            calls.append([])
            room = limit
        calls[-1] += questions
        room -= size
    return calls
