"""Which responses never stop, and which stop too soon."""
# ruff: noqa: RUF001 - letters that look like others are the point

from typing import Any

import pytest

from synthalign.pairs import CutOff, RunOn
from synthalign.types import Drop, Reply

QUESTION = "What is in the image?"
NUMBERS = "zero one two three four five six seven eight nine".split()


def run_on(text: str, **settings: Any) -> str | None:
    drop = RunOn(**settings)(QUESTION, Reply(text))
    assert drop is None or drop.reason == "run_on"
    return drop and drop.detail


def counted(number: int) -> str:
    """So many words, no two alike."""
    return " ".join("".join(NUMBERS[int(digit)] for digit in str(n)) for n in range(number))


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("no " * 12, "no"),
        ("no " * 11, None),
        ("A cat, a dog, " * 4, "a cat a dog"),
        ("A cat, a dog, " * 3, None),
        ("It began well: " + "and a cat " * 5, "and a cat"),
        ("1. A cat\n2. A cat\n3. A cat\n4. A cat\n5. A cat\n6. A cat", "a cat"),
        ("和一只猫" * 4, "和 一 只 猫"),
        ("和一只猫" * 3, None),
        ("X O X\nO X O\nX O X", None),
        ("Ha ha ha ha!", None),
        ("The first is red, the second is red, the third is blue, the fourth is red.", None),
    ],
)
def test_the_same_words_four_times_on_end_are_a_loop_if_they_fill_twelve(text, loop):
    assert run_on(text) == (f"says {loop!r} more than 3 times on end" if loop else None)


def test_a_word_of_ten_repetitions_is_a_loop():
    assert run_on("A so" + "o" * 9) == f"a word goes on and on: {'o' * 10!r}"
    assert run_on("A so" + "o" * 8) is None
    assert run_on("haha" * 5) == f"a word goes on and on: {'ha' * 10!r}"
    assert run_on("1000000000000 ------------ ............") is None


def test_half_of_the_sequences_repeated_is_a_loop_in_a_long_text():
    sides = [f"There is a {animal} on the {side} side." for animal in ("cat", "dog") for side in ("left", "right")]
    order = (0, 1, 2, 1, 0, 1, 3, 0)
    text = " ".join(sides[n] for n in order)  # 64 words, 61 sequences
    said = text.lower().replace(".", "").split()
    sequences = [tuple(said[n : n + 4]) for n in range(61)]
    share = 1 - len(set(sequences)) / 61
    assert run_on(text) == f"{share:.0%} of its sequences of four words have occurred before"
    assert run_on(text, max_repeated=share) is None
    assert run_on(" ".join(sides[n] for n in order[:4])) is None  # 32 words
    colors = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")
    assert run_on(" ".join(f"There is a {color} cup." for color in colors)) is None


def test_a_sentence_and_a_text_may_be_only_so_long():
    assert run_on(counted(100)) is None
    assert run_on(counted(101)) == "101 words without an end of sentence"
    for stop in (". ", "; ", ": ", "\n", "。", "? "):
        assert run_on(counted(60) + stop + "x" + counted(60)) is None
    sentences = [f"{counted(100)} {name}." for name in NUMBERS[:7]]
    assert run_on(" ".join(sentences), max_sentence=101, max_repeated=1.0) == "707 words, more than 600"
    assert run_on(" ".join(sentences), max_sentence=101, max_repeated=1.0, max_words=707) is None


def test_a_long_text_is_read_in_a_moment():
    assert run_on(counted(20_000)) is not None
    assert CutOff()(QUESTION, Reply(counted(20_000))) is None


def test_what_reached_the_length_limit_is_cut_off_whatever_it_ends_in():
    drop = CutOff()(QUESTION, Reply("A cat.", truncated=True))
    assert drop == Drop("cut_off", "the length limit was reached: ends in 'A cat.'")


@pytest.mark.parametrize(
    "text",
    [
        "There is a cat on the",
        "A cat, a dog,",
        "There are 3 of",
        "The image shows:",
        "The image shows (",
        "A cat and",
        "A well-",
        "A cat –",
        "有一只猫，",
        "Eine Katze und",
        "**A cat and**",
        "A cat is on the sofa. It is looking at the came",
        "Is that a cat? I am not sure that it",
        'The sign says "Stop." Behind it there are two',
        "A cat on the sofa!\nIt is looking at the came",
        "有一只猫。它在看着窗",
        "There are 5 dogs in the yard. Behind them there is",
        "Dr. Smith is talking to a nurse. Behind them there is",
    ],
)
def test_a_text_that_breaks_off_is_cut_off(text):
    drop = CutOff()(QUESTION, Reply(text))
    assert drop is not None and drop.reason == "cut_off"
    assert drop.detail.endswith(f"ends in {text[-40:]!r}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes",
        "A cat on a sofa",
        "A cat. ",
        "Yes. A red cup",  # no sentence before it
        "He is the man she talks to",
        "A bench to sit on",
        "Vitamin A",
        "It is the letter A",
        "the a",  # too short to be a sentence
        "This is Mt. Everest in the Himalayas",
        "Dr. Smith and Mr. Jones are shaking hands",
        "A dog of approx. 5 kg weight",
        "The train has just left. It was the 10:45",
        "The thermometer is old. It shows -5 °C",
        "It is a bag of flour. It weighs 5 kg",
        "It is an old poster. It says www.example.com",
        "It is an old poster. It says “Drink milk”",
        "It is an old poster. (The corner is torn off)",
        "She is opening a present. It looks like a toy 🎁",
        "What I see is this.\n- a cat\n- two red dogs",
        "What I see is this.\n1. a cat\n2) two red dogs",
        "有一只猫",
        "有一只猫。",
        "क्या यह बिल्ली है।",
        "`print(1)`",
        "A cat…",
        "Wait?!",
    ],
)
def test_a_text_that_may_end_so_is_not_cut_off(text):
    assert CutOff()(QUESTION, Reply(text)) is None


def test_the_words_that_cannot_end_a_sentence_are_a_setting():
    assert CutOff(dangling=("sofa",))(QUESTION, Reply("A cat and the")) is None
    assert CutOff(dangling=("sofa",))(QUESTION, Reply("A cat on the sofa")) is not None


@pytest.mark.parametrize("wrong", [{"max_repeats": 0}, {"max_repeated": 50.0}, {"max_sentence": 0}, {"max_words": 0}])
def test_limits_that_would_refuse_or_pass_everything_are_refused(wrong):
    with pytest.raises(ValueError, match=r"RunOn needs max_repeats, max_sentence and max_words >= 1 and max_repeated"):
        RunOn(**wrong)
