from collections import Counter
from random import Random

import pytest

from synthalign.world import questions as q
from synthalign.world.language import describe
from synthalign.world.scenes import HALF, Item, sample, scene

SEEN = scene("kitchen", [Item("cup", "red", 0), Item("pan", "red", 1), Item("bus", "black", 8)])


@pytest.mark.parametrize(
    ("question", "truth"),
    [
        ("Is there a cup in the image?", "Yes, there is a cup."),
        ("Is there a fork in the image?", "No, there is no fork."),
        ("What color is the bus?", "The bus is black."),
        ("What color is the fork?", "There is no fork."),
        ("Where is the bus?", "The bus is at the bottom-right."),
        ("Where is the cup?", "The cup is at the top-left."),
        ("Where is the fork?", "There is no fork."),
        ("What object is at the top?", "There is a red pan there."),
        ("What object is at the center?", "There is nothing there."),
        ("How many objects are in the image?", "There are three objects."),
        ("What kind of place is this?", "This is a kitchen."),
        ("Do the cup and the pan have the same color?", "Yes, they have the same color."),
        ("Do the cup and the bus have the same color?", "No, they have different colors."),
        ("Is the cup above the bus?", "Yes, the cup is above the bus."),
        ("Is the bus above the cup?", "No, the bus is not above the cup."),
        ("Is the cup above the pan?", "No, the cup is not above the pan."),
        ("Is the cup above the fork?", "There is no fork."),
        ("Do the fork and the cup have the same color?", "There is no fork."),
    ],
)
def test_true_answers_by_hand(question: str, truth: str):
    assert q.answer(SEEN, question) == truth


def test_a_description_is_the_caption():
    assert {q.answer(SEEN, question) for question in q.DESCRIBE} == {describe(SEEN)}


def test_one_object_is_counted_in_the_singular():
    assert q.answer(scene("road", [Item("bus", "red", 3)]), q.COUNT) == "There is one object."


def test_an_unknown_question_is_refused():
    with pytest.raises(ValueError, match="knows no question like 'Who is there"):
        q.answer(SEEN, "Who is there?")


def test_drawn_questions_can_all_be_answered_and_keep_to_their_shares():
    rng = Random(0)
    kinds: Counter[str] = Counter()
    for _ in range(4000):
        meant = sample(rng, HALF)
        question = q.draw_question(meant, rng)
        truth = q.answer(meant, question)
        kinds["describe" if question in q.DESCRIBE else truth.split(",")[0] if "Is there" in question else "open"] += 1
    assert kinds["describe"] / 4000 == pytest.approx(0.35, abs=0.03)
    assert (kinds["Yes"] + kinds["No"]) / 4000 == pytest.approx(0.45, abs=0.03)
    assert kinds["Yes"] / (kinds["Yes"] + kinds["No"]) == pytest.approx(0.4, abs=0.04)
    assert kinds["open"] / 4000 == pytest.approx(0.2, abs=0.03)
