import pytest

from synthalign.types import Judge
from synthalign.world.judge import RuleJudge

JUDGE: Judge = RuleJudge()
CONTENTS = ["cup", "pan", "bus"]
CAPTION = (
    "The image shows a kitchen with a red cup at the top-left, a blue pan at the top and a black bus at the center."
)


def score(question: str, reference: str, answer: str) -> int:
    (judgement,) = JUDGE.judge([CONTENTS], [question], [reference], [answer])
    assert judgement.parsed
    assert judgement.text.endswith(f"Rating: {judgement.score}")
    return judgement.score


@pytest.mark.parametrize(
    ("question", "reference", "answer", "expected"),
    [
        ("What color is the cup?", "The cup is red.", "The cup is red.", 6),
        ("What color is the cup?", "The cup is red.", "the cup is red", 6),
        ("What color is the cup?", "The cup is red.", "Red.", 5),
        ("What color is the cup?", "The cup is red.", "I cannot tell.", 3),
        ("What color is the cup?", "The cup is red.", "", 3),
        ("What color is the cup?", "The cup is red.", "The cup is red or blue.", 1),
        ("What color is the cup?", "The cup is red.", "The cup is blue.", 0),
        ("What color is the cup?", "The cup is red.", "There is no cup.", 0),
        ("What color is the fork?", "There is no fork.", "The fork is red.", 0),
        ("Where is the cup?", "The cup is at the top-left.", "The cup is at the top.", 0),
        ("Is the cup above the bus?", "Yes, the cup is above the bus.", "Yes.", 5),
        ("Is the cup above the bus?", "Yes, the cup is above the bus.", "No, the cup is not above the bus.", 0),
        ("Do the cup and the pan have the same color?", "No, they have different colors.", "No.", 5),
        ("Do the cup and the pan have the same color?", "No, they have different colors.", "Yes, the same color.", 0),
        ("How many objects are in the image?", "There are three objects.", "There are two objects.", 0),
        ("What kind of place is this?", "This is a kitchen.", "It looks like a kitchen.", 5),
        ("What object is at the top-left?", "There is a red cup there.", "A cup.", 4),
        ("What object is at the top-left?", "There is a red cup there.", "There is a blue cup there.", 1),
        ("What object is at the left?", "There is nothing there.", "There is a blue pan there.", 0),
    ],
)
def test_short_answers_by_hand(question: str, reference: str, answer: str, expected: int):
    assert score(question, reference, answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (CAPTION, 6),
        (CAPTION.replace(", a blue pan at the top", ""), 5),
        ("The image shows a kitchen with a red cup at the top-left.", 4),
        ("The image shows a kitchen.", 3),
        (CAPTION.replace(".", " and a red fork at the left."), 2),
        (CAPTION.replace(".", " and a red fork at the left and a red knife at the right."), 1),
        (CAPTION.replace("red", "green"), 1),
        (CAPTION.replace("kitchen", "road"), 2),
        ("The image shows a kitchen with a red fork at the left.", 0),
    ],
)
def test_descriptions_by_hand(answer: str, expected: int):
    assert score("Describe the image.", CAPTION, answer) == expected
