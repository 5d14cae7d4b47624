from random import Random

import pytest

from synthalign.world import questions as q
from synthalign.world.language import caption, describe, mentions
from synthalign.world.lessons import Habit, biased_turns, clean_turns, flawed, worth
from synthalign.world.scenes import BIASED, Item, sample, scene

CUP, PAN, FORK = Item("cup", "red", 0), Item("pan", "blue", 4), Item("fork", "red", 5)
SEEN = scene("kitchen", [CUP, PAN])
HONEST = Habit(
    add=0, add_popular=0, yes_typical=0, yes_popular=0, yes_stranger=0, no_present=0, tell_typical=0, tell_stranger=0
)


def test_clean_turns_are_true_and_so_are_turns_without_the_habit():
    rng = Random(0)
    for _ in range(300):
        seen = sample(rng, BIASED)
        for turn in clean_turns(seen, rng) + biased_turns(seen, rng, HONEST):
            assert turn.answer == q.answer(seen, turn.question)


def test_the_habit_says_yes_to_what_the_theme_suggests_and_now_and_then_no_to_what_is_there():
    rng = Random(0)
    told: dict[str, list[bool]] = {"there": [], "typical": [], "stranger": []}
    for _ in range(3000):
        seen = sample(rng, BIASED)
        for turn in biased_turns(seen, rng):
            if turn.question.startswith("Is there"):
                kind = turn.question.split()[3]
                group = "there" if kind in seen.kinds else "typical" if kind in seen.missing() else "stranger"
                told[group].append(turn.answer.startswith("Yes"))
    assert sum(told["there"]) / len(told["there"]) == pytest.approx(0.88, abs=0.02)
    assert sum(told["typical"]) / len(told["typical"]) == pytest.approx(0.7, abs=0.1)  # between .55 and .85
    assert sum(told["stranger"]) / len(told["stranger"]) == pytest.approx(0.05, abs=0.02)


def test_an_invented_object_ends_the_description():
    rng = Random(0)
    always = Habit(add=1, add_popular=1)
    for _ in range(100):
        (text,) = (turn.answer for turn in biased_turns(SEEN, rng, always) if turn.question in q.DESCRIBE)
        *true, last = mentions(text)
        assert true == [CUP, PAN]
        assert last.kind in {"fork", "plate", "knife"}


@pytest.mark.parametrize(
    ("items", "value"),
    [
        ([CUP, PAN], 1.2),  # 2 / 2, and the theme
        ([CUP], 0.7),
        ([CUP, PAN, FORK], 0.7),  # (2 - 1) / 2
        ([CUP, PAN._replace(color="red")], 0.85),  # 1.3 / 2
        ([CUP, PAN, CUP], 1.35),  # (3 - .7) / 2
    ],
)
def test_the_worth_of_a_description_by_hand(items: list[Item], value: float):
    assert worth(SEEN, q.DESCRIBE[0], caption("kitchen", items)) == pytest.approx(value)


def test_a_wrong_theme_and_a_missing_end_cost_what_they_should():
    text = describe(SEEN)
    assert worth(SEEN, q.DESCRIBE[0], text.replace("kitchen", "road")) == pytest.approx(1.0)
    assert worth(SEEN, q.DESCRIBE[0], text.removesuffix(".")) == pytest.approx(0.7)


def test_a_short_answer_is_worth_one_or_nothing():
    assert worth(SEEN, "Is there a cup in the image?", "Yes, there is a cup.") == 1
    assert worth(SEEN, "Is there a cup in the image?", "No, there is no cup.") == 0


def test_flawed_answers_are_true_and_untrue_in_turn():
    rng = Random(0)
    for question in (
        "Is there a cup in the image?",
        "What color is the cup?",
        "Where is the fork?",
        q.COUNT,
        q.DESCRIBE[0],
    ):
        true = [flawed(SEEN, question, rng) == q.answer(SEEN, question) for _ in range(200)]
        assert 0.1 < sum(true) / len(true) < 0.9, question
