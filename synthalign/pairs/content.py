"""Gates for responses that say nothing of their own."""

# ruff: noqa: RUF001 - the signs are meant

import re
from collections.abc import Iterator
from dataclasses import dataclass

from synthalign.pairs.sameness import essence
from synthalign.pairs.wording import plain, words
from synthalign.types import Drop, Reply

_BOUNDARY = re.compile(r"[.!?:;。！？：；…\n]")


@dataclass(frozen=True, kw_only=True)
class Empty:
    """Refuse a response without a single letter or digit: it would score nothing and teach nothing."""

    def __call__(self, question: str, reply: Reply) -> Drop | None:
        """Say ``empty``, or None."""
        if any(map(str.isalnum, reply.text)):
            return None
        return Drop("empty", f"no letter or digit in {reply.text[:60]!r}")


@dataclass(frozen=True, kw_only=True)
class Echo:
    """Refuse a response that says the question again, or that begins a sentence by doing so.

    A response that says it in all but articles and fillers is an echo too, unless it begins with another word, as an
    answer does ("Is it a dog?", "It is a dog.").

    Args:
        min_words: Shortest question, in words, that a part of a response can echo: "I don't know. Why?" may stand.
    """

    min_words: int = 3

    def __call__(self, question: str, reply: Reply) -> Drop | None:
        """Say ``echo``, or None."""
        asked, said = plain(question), plain(reply.text)
        echo = bool(asked) and (asked == said or _reworded(asked, question, said, reply.text))
        if asked and not echo and len(words(question)) >= self.min_words:
            echo = f" {asked} " in f" {said} " and any(
                rest.startswith(asked + " ") for rest in _sentences_on(reply.text)
            )
        return Drop("echo", f"repeats the question: {reply.text[:60]!r}") if echo else None


def _reworded(asked: str, question: str, said: str, text: str) -> bool:
    """Whether two texts begin alike and differ in fillers only."""
    return asked.split()[0] == said.partition(" ")[0] and essence(question) == essence(text) != []


def _sentences_on(text: str) -> Iterator[str]:
    """A text, plain, from each beginning of a sentence to its end and a space."""
    for start in (0, *(mark.end() for mark in _BOUNDARY.finditer(text))):
        yield plain(text[start:]) + " "
