"""Which responses say nothing of their own: by hand, on odd texts."""
# ruff: noqa: RUF001 - letters that look like others are the point

import pytest

from synthalign.pairs import Echo, Empty
from synthalign.types import Drop, Reply

QUESTION = "What is in the image?"


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
        (QUESTION, "In the image is a cat. What is in the image?", True),
        (QUESTION, "Sure! What is in the image?", True),
        (QUESTION, "USER: What is in the image? ASSISTANT: A cat.", True),
        (QUESTION, "You ask what is in the image.", False),
        (QUESTION, "What's in this picture?", True),  # fillers and contractions apart
        (QUESTION, "What is on the image?", False),
        (QUESTION, "What is in the images is a cat.", False),
        (QUESTION, "A cat.", False),
        ("图里有什么？", "图里有什么？有一只猫。", True),
        ("图里有什么？", "图里有一只猫。", False),
        ("Qu’est-ce que c'est ?", "qu'est-ce que c’est", True),
        ("Cafe\u0301?", "Café!", True),  # an accent apart, and in one with its letter
        ("Is it a dog?", "It is a dog.", False),
        ("Is there a dog in the image?", "There is a dog in the image.", False),
        ("There is a dog in the image, right?", "There is a dog in the image.", False),
        ("a red cup?", "It is a red cup.", False),
        ("A cat or a dog?", "A cat", False),
        ("Why?", "I don't know. Why?", False),  # too short to be echoed in part
        ("Why?", "why", True),
        ("?", "Anything", False),
        ("", "Anything", False),
    ],
)
def test_a_response_that_says_the_question_as_a_sentence_is_an_echo(question, response, echoes):
    drop = Echo()(question, Reply(response))
    assert drop == (Drop("echo", f"repeats the question: {response!r}") if echoes else None)


def test_the_shortest_question_echoed_in_part_is_a_setting():
    assert Echo(min_words=1)("Why?", Reply("Why? It rains.")) is not None
    assert Echo(min_words=6)(QUESTION, Reply("What is in the image? A cat.")) is None
    assert Echo(min_words=6)(QUESTION, Reply("What is in the image")) is not None
