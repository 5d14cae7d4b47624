"""Which two responses make a pair, and which make none: by hand, on odd texts."""
# ruff: noqa: RUF001 - letters that look like others are the point

import pytest

from synthalign.pairs import BestWorst, Echo, Empty, ForeignScript, Identical, TooClose, refuse, surplus
from synthalign.store import seed_of
from synthalign.types import Drop, PickedPair, Reply

QUESTION = "What is in the image?"


@pytest.mark.parametrize(
    ("scores", "pair"),
    [
        ([0.1, 0.9, -0.5], (1, 2)),
        ([2.0, 1.0], (0, 1)),
        ([1.0, 3.0, 3.0, 1.0], (1, 0)),  # ties go to the first
        ([-1.0, -2.0, -3.0, -0.5, -9.0], (3, 4)),
        ([0.5, 0.5, 0.5], None),
        ([0.5], None),
        ([], None),
    ],
)
def test_the_best_is_chosen_and_the_worst_rejected(scores, pair):
    assert BestWorst()(scores, 0) == pair


@pytest.mark.parametrize(
    ("response", "empty"),
    [
        ("", True),
        (" \n\t", True),
        ("…", True),
        ("?!“”", True),
        ("\u200b\ufeff", True),
        ("👍", True),
        ("0", False),
        ("猫", False),
        ("Да.", False),
        ("²", False),
        ("ก", False),
    ],
)
def test_a_response_without_letter_or_digit_is_empty(response, empty):
    drop = Empty()(QUESTION, Reply(response))
    assert drop == (Drop("empty", f"no letter or digit in {response!r}") if empty else None)


@pytest.mark.parametrize(
    ("question", "response", "echoes"),
    [
        (QUESTION, "What is in the image?", True),
        (QUESTION, "“what is in the IMAGE”", True),
        (QUESTION, "What is in the image? A cat.", True),
        (QUESTION, "**What is in the image?**\nA cat.", True),
        (QUESTION, "In the image is a cat. What is in the image?", False),
        (QUESTION, "What is in the images is a cat.", False),
        (QUESTION, "A cat.", False),
        ("图里有什么？", "图里有什么？有一只猫。", True),
        ("图里有什么？", "图里有一只猫。", False),
        ("Qu’est-ce que c'est ?", "qu'est-ce que c’est", True),
        ("Cafe\u0301?", "Café!", True),  # an accent apart, and in one with its letter
        ("?", "Anything", False),
        ("", "Anything", False),
    ],
)
def test_a_response_that_begins_with_the_question_is_an_echo(question, response, echoes):
    drop = Echo()(question, Reply(response))
    assert drop == (Drop("echo", f"repeats the question: {response!r}") if echoes else None)


@pytest.mark.parametrize(
    ("question", "response", "foreign"),
    [
        (QUESTION, "A cat.", None),
        (QUESTION, "Кот.", "cyrillic letters in 'Кот.'"),
        (QUESTION, "一只猫", "cjk letters in '一只猫'"),
        (QUESTION, 'A sign that says "出口" over a door.', None),  # 2 of 27 letters
        (QUESTION, "出口 sign", "cjk letters in '出口 sign'"),  # 2 of 6
        (QUESTION, "a b c d 猫", None),  # 1 of 5: exactly the share allowed
        (QUESTION, "a b c 猫", "cjk letters in 'a b c 猫'"),  # 1 of 4
        (QUESTION, "ｃａｔ", None),  # Latin in full width
        (QUESTION, "12 + 30 = 42 👍", None),
        ("图里有什么？", "一只猫", None),
        ("图里有什么？", "A cat.", "latin letters in 'A cat.'"),
        ("なに？", "黒猫二匹、カップ三個です", None),  # Japanese is written in all three
        ("图里有什么？", "ねこがいます", "kana letters in 'ねこがいます'"),
        ("무엇입니까?", "고양이", None),
        ("1 + 1?", "два", None),  # no letters, no script to keep to
    ],
)
def test_a_response_in_a_script_that_the_question_does_not_use_is_foreign(question, response, foreign):
    drop = ForeignScript()(question, Reply(response))
    assert drop == (Drop("foreign_script", foreign) if foreign else None)


def test_the_share_of_foreign_letters_is_a_setting():
    assert ForeignScript(max_share=1.0)(QUESTION, Reply("Кот.")) is None
    assert ForeignScript(max_share=0.0)(QUESTION, Reply("A cat: 猫")) is not None


@pytest.mark.parametrize(
    ("chosen", "rejected", "same"),
    [
        ("A cat.", "a  cat", True),
        ("“A cat”", "A cat!", True),
        ("STRASSE", "straße", True),
        ("Cafe\u0301", "Café", True),
        ("`cat`", "_cat_", True),
        ("so\u00adfa", "sofa", True),  # a soft hyphen is not seen
        ("A cat.", "A cats.", False),
        ("2 < 3", "2 > 3", False),
        ("$5", "€5", False),
        ("कि", "का", False),  # the same consonant with another vowel sign
        ("猫。", "犬。", False),
        ("café", "cafe", False),
        ("don't", "dont", False),
    ],
)
def test_responses_that_differ_in_case_punctuation_and_spacing_are_identical(chosen, rejected, same):
    for first, second in ((chosen, rejected), (rejected, chosen)):
        drop = Identical()(PickedPair(QUESTION, first, second, 1.0))
        assert drop == (Drop("identical", f"both say {first!r}") if same else None)


@pytest.mark.parametrize(
    ("margin", "min_margin", "detail"),
    [
        (0.5, 0.0, None),
        (0.0, 0.0, "margin 0 is not above 0"),
        (-1.0, 0.0, "margin -1 is not above 0"),
        (0.5, 0.5, "margin 0.5 is not above 0.5"),
        (0.5000001, 0.5, None),
        (float("nan"), 0.0, "margin nan is not above 0"),
        (None, 5.0, None),
    ],
)
def test_a_margin_must_be_above_the_least(margin, min_margin, detail):
    drop = TooClose(min_margin=min_margin)(PickedPair(QUESTION, "a", "b", margin))
    assert drop == (Drop("too_close", detail) if detail else None)


def test_the_first_objection_counts_and_names_the_side():
    def reason(chosen: str, rejected: str, margin: float | None = 2.0) -> str | None:
        pair_gates = (Identical(), TooClose(min_margin=1.0))
        drop = refuse((Empty(), Echo()), pair_gates, PickedPair(QUESTION, chosen, rejected, margin))
        return None if drop is None else f"{drop.reason}: {drop.detail}"

    assert reason("A cat.", "A dog.") is None
    assert reason("A cat.", "…") == "empty: rejected: no letter or digit in '…'"
    assert reason(QUESTION, "…") == f"echo: chosen: repeats the question: {QUESTION!r}"
    assert reason("A cat.", "a cat", 0.5) == "identical: both say 'A cat.'"
    assert reason("A cat.", "A dog.", 0.5) == "too_close: margin 0.5 is not above 1"
    assert reason("A cat.", "A dog.", None) is None


def test_the_surplus_leaves_as_many_yes_as_no():
    chosen = {f"y{n}": text for n, text in enumerate(["Yes.", "yes, a cat", "“YES”", "Yes: 2", "yes"])}
    chosen |= {f"n{n}": text for n, text in enumerate(["No", "no!"])}
    chosen |= {"other": "A cat.", "almost": "Yesterday.", "nothing": "None.", "now": "Nothing."}
    out = surplus(list(chosen), list(chosen.values()), seed=3)
    assert len(out) == 3 and out <= {f"y{n}" for n in range(5)}
    assert (
        surplus([key for key in chosen if key not in out], [v for k, v in chosen.items() if k not in out], 3) == set()
    )


def test_the_surplus_depends_on_seed_and_ids_alone():
    ids = [f"pair-{n}" for n in range(40)]
    texts = ["No." if n % 4 else "Yes." for n in range(40)]
    out = surplus(ids, texts, seed=0)
    said_no = [pair_id for pair_id, text in zip(ids, texts, strict=True) if text == "No."]
    assert out == set(sorted(said_no, key=lambda pair_id: seed_of(0, "surplus", pair_id))[:20])
    assert surplus(ids[::-1], texts[::-1], seed=0) == out
    assert surplus(ids, ["No, none." if text == "No." else text for text in texts], seed=0) == out
    assert surplus(ids, texts, seed=1) != out


def test_a_balanced_pool_has_no_surplus():
    assert surplus(["a", "b"], ["Yes.", "No."], seed=0) == set()
    assert surplus([], [], seed=0) == set()
    assert surplus(["a", "b"], ["A cat.", "A dog."], seed=0) == set()
