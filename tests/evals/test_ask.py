from contextlib import nullcontext
from pathlib import Path

import pytest

from synthalign.evals.ask import ask, distinct, share
from synthalign.types import Question, Reply


class SaysTheShade:
    """A policy that reads the shade of the image; it keeps the size of every call."""

    has_adapter = False

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def answer(self, images, questions, *, max_new_tokens):
        assert max_new_tokens == 5
        assert all(image.mode == "RGB" for image in images)
        self.calls.append([image.getpixel((0, 0))[0] for image in images])
        return [Reply(f"{image.getpixel((0, 0))[0]} {text}") for image, text in zip(images, questions, strict=True)]

    def adapters_off(self):
        return nullcontext()


def questions_about(images, texts_of):
    return [
        Question(f"{split}/{name}/{text}", images / name, text, split, None)
        for split in ("a", "b")
        for name, texts in texts_of.items()
        for text in texts
    ]


class Mute(SaysTheShade):
    def answer(self, images, questions, *, max_new_tokens):
        return []


TEXTS = {"010.png": ["x", "y", "z"], "020.png": ["x"], "030.png": ["x", "y"], "040.png": []}


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_shares_hold_every_question_once_and_every_image_whole(images, world_size):
    questions = questions_about(images, TEXTS)
    shares = [share(questions, rank, world_size) for rank in range(world_size)]
    held = [question for mine in shares for of_image in mine for question in of_image]
    assert sorted(question.id for question in held) == sorted(question.id for question in questions)
    owners = [{question.image for of_image in mine for question in of_image} for mine in shares]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 3


def test_a_question_of_two_splits_is_asked_once_and_replied_to_twice(images):
    questions = questions_about(images, TEXTS)
    policy = SaysTheShade()
    asked, replies = ask(policy, questions, max_new_tokens=5)
    assert len(asked) == len(replies) == 12
    assert sum(map(len, policy.calls)) == distinct(questions) == 6
    assert sorted(question.id for question in asked) == sorted(question.id for question in questions)
    for question, reply in zip(asked, replies, strict=True):
        assert reply.text == f"{int(question.image.stem)} {question.text}"


@pytest.mark.parametrize(
    ("limit", "calls"),
    [
        (128, [[10, 10, 10, 20, 30, 30]]),
        (4, [[10, 10, 10, 20], [30, 30]]),
        (3, [[10, 10, 10], [20, 30, 30]]),
        (1, [[10, 10, 10], [20], [30, 30]]),
    ],
)
def test_a_call_holds_whole_images_up_to_its_limit(images, limit, calls):
    policy = SaysTheShade()
    told: list[int] = []
    ask(
        policy,
        questions_about(images, TEXTS),
        max_new_tokens=5,
        questions_per_call=limit,
        progress=told.append,
    )
    assert policy.calls == calls
    assert told == [len(call) for call in calls]


def test_an_empty_share_asks_nothing():
    policy = SaysTheShade()
    assert ask(policy, [], max_new_tokens=5) == ([], [])
    assert policy.calls == []


def test_an_unreadable_image_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    question = Question("q", tmp_path / "broken.png", "?", "a", None)
    with pytest.raises(ValueError, match=r"broken\.png"):
        ask(SaysTheShade(), [question], max_new_tokens=5)


def test_a_policy_that_loses_replies_is_an_error(images):
    question = Question("q", Path(images / "010.png"), "?", "a", None)
    with pytest.raises(ValueError, match=r"Mute\.answer gave 0 replies to 1 questions"):
        ask(Mute(), [question], max_new_tokens=5)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("limit", [1, 3, 128])
def test_in_lockstep_all_ranks_ask_equally_many_questions_equally_often(images, world_size, limit):
    questions = questions_about(images, TEXTS)
    policies = [SaysTheShade() for _ in range(world_size)]
    told: list[list[int]] = [[] for _ in range(world_size)]
    held = []
    for rank, policy in enumerate(policies):
        asked, replies = ask(
            policy,
            questions,
            max_new_tokens=5,
            rank=rank,
            world_size=world_size,
            lockstep=True,
            questions_per_call=limit,
            progress=told[rank].append,
        )
        held += asked
        for question, reply in zip(asked, replies, strict=True):
            assert reply.text == f"{int(question.image.stem)} {question.text}"
    sizes = [[len(call) for call in policy.calls] for policy in policies]
    assert all(of_rank == sizes[0] for of_rank in sizes) and sum(sizes[0]) > 0
    assert sorted(question.id for question in held) == sorted(question.id for question in questions)
    assert sum(map(sum, told)) == distinct(questions)


def test_in_lockstep_a_rank_without_a_share_asks_what_another_does(images):
    questions = questions_about(images, {"020.png": ["x", "y"]})
    first, second = SaysTheShade(), SaysTheShade()
    ask(first, questions, max_new_tokens=5, rank=0, world_size=2, lockstep=True)
    assert ask(second, questions, max_new_tokens=5, rank=1, world_size=2, lockstep=True) == ([], [])
    assert first.calls == second.calls == [[20, 20]]


def test_out_of_lockstep_nobody_asks_for_nothing(images):
    questions = questions_about(images, {"020.png": ["x", "y"], "030.png": ["x"]})
    policies = [SaysTheShade() for _ in range(3)]
    for rank, policy in enumerate(policies):
        ask(policy, questions, max_new_tokens=5, rank=rank, world_size=3)
    assert [policy.calls for policy in policies] == [[[20, 20]], [[30]], []]
