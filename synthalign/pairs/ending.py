"""Gates for responses that do not come to an end, or to an end too soon."""

# ruff: noqa: RUF001 - the signs are meant

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from synthalign.pairs.wording import words
from synthalign.types import Drop, Reply

DANGLING = (
    *("a", "an", "the", "its", "their", "your", "our"),
    *("and", "or", "but", "because", "although", "while", "whose", "than"),
    *("of", "into", "onto", "between", "among", "toward", "towards"),
    *("und", "oder", "aber", "weil", "einen", "einem"),
    *("et", "parce", "une", "aux", "pero", "porque"),
)
"""Words, in lower case, after which a sentence goes on. None that may end one in a language of the same script."""

_STOPS = ".!?…。！？｡؟۔।॥։።‼⁇⁈⁉"
_MARKUP = "*_`~| \t\n"
_ITEM = re.compile(r"\s*(?:[-*+•–]|\(?(?:\d+|[A-Za-z])[.)])\s")
_ITEM_MARK = re.compile(r"^\s*\(?\d+[.)]\s", re.MULTILINE)
_SENTENCE_END = re.compile(rf"[{re.escape(_STOPS)};:\n]")
_FIGURE = re.compile(r"\d[^.]*$|[°@=]|\w[./]\w")
_LOOP_IN_WORD = re.compile(r"([^\W\d_]{1,10}?)\1{9,}")
_STOP = re.compile(r"[.!?…]+[”\"')\]]*\s+|[。！？।॥]\s*")
_ABBREVIATION = re.compile(r"[A-Z]\w{0,2}|\w|\S+\.\S+|approx|ca|etc|ft|vs")


@dataclass(frozen=True, kw_only=True)
class RunOn:
    """Refuse a response that goes round in circles or never comes to a stop.

    Words are plain words, or letters where no spaces are set.

    Args:
        max_repeats: Most times that the same words may stand one after the other, where they fill 12 words or more:
            "Ha ha ha!" and a row of a game board pass.
        max_repeated: Largest share of the sequences of four words, in a response of 40 words or more, that have
            occurred before; in [0, 1].
        max_sentence: Most words without an end of sentence, colon, semicolon or line.
        max_words: Most words in all.
    """

    max_repeats: int = 3
    max_repeated: float = 0.5
    max_sentence: int = 100
    max_words: int = 600

    def __post_init__(self) -> None:
        """Refuse limits that would refuse, or pass, everything."""
        if min(self.max_repeats, self.max_sentence, self.max_words) < 1 or not 0 <= self.max_repeated <= 1:
            raise ValueError(
                "RunOn needs max_repeats, max_sentence and max_words >= 1 and max_repeated in [0, 1], got "
                f"{self.max_repeats}, {self.max_sentence}, {self.max_words} and {self.max_repeated:g}"
            )

    def __call__(self, question: str, reply: Reply) -> Drop | None:
        """Say ``run_on``, or None."""
        said = words(_ITEM_MARK.sub(" ", reply.text))
        if loop := _loop(said, self.max_repeats):
            return Drop("run_on", f"says {' '.join(loop)[:60]!r} more than {self.max_repeats} times on end")
        if match := _LOOP_IN_WORD.search(reply.text):
            return Drop("run_on", f"a word goes on and on: {match[0][:60]!r}")
        repeated = _repeated_share(said)
        if len(said) >= 40 and repeated > self.max_repeated:
            return Drop("run_on", f"{repeated:.0%} of its sequences of four words have occurred before")
        longest = max(len(words(sentence)) for sentence in _SENTENCE_END.split(reply.text))
        if longest > self.max_sentence:
            return Drop("run_on", f"{longest} words without an end of sentence")
        if len(said) > self.max_words:
            return Drop("run_on", f"{len(said)} words, more than {self.max_words}")
        return None


@dataclass(frozen=True, kw_only=True)
class CutOff:
    """Refuse a response that breaks off: at the length limit, or by its last words.

    By its last words, a response breaks off after a comma, colon, hyphen or opening bracket; after a word that
    cannot end a sentence; or without a full stop where an earlier sentence has one. One sentence, a noun, an item of a
    list, a figure with its unit, an address, a closing quotation mark or bracket and an emoji need no full stop.

    Args:
        dangling: Words, in lower case, that cannot end a response of three words or more.
    """

    dangling: tuple[str, ...] = DANGLING

    def __call__(self, question: str, reply: Reply) -> Drop | None:
        """Say ``cut_off``, or None."""
        tail = f"ends in {reply.text[-40:]!r}"
        if reply.truncated:
            return Drop("cut_off", f"the length limit was reached: {tail}")
        text = reply.text.strip(_MARKUP)
        if not text or text[-1] in _STOPS:
            return None
        if text[-1] in ",;:、，；：-–—" or unicodedata.category(text[-1]) == "Ps":
            return Drop("cut_off", tail)
        if not text[-1].isalpha() or _ITEM.match(text.splitlines()[-1]):
            return None
        said = text.split()
        if len(said) >= 3 and said[-1] in self.dangling:
            return Drop("cut_off", tail)
        if _FIGURE.search(" ".join(said[-2:])):
            return None
        last = _last_sentence(text)
        if len(last) < len(text) and len(words(last)) >= 3:
            return Drop("cut_off", f"no full stop after an earlier one: {tail}")
        return None


def _last_sentence(text: str) -> str:
    """What follows the last sentence that is one: of three words or more, no title or initial before its full stop."""
    start = 0
    for mark in _STOP.finditer(text):
        said = text[start : mark.start()].split()
        spaced = mark[0][0] in ".!?…"
        is_one = len(said) >= 3 and not _ABBREVIATION.fullmatch(said[-1]) and not text[mark.end() :][:1].islower()
        if is_one or not spaced:
            start = mark.end()
    return text[start:]


def _loop(said: Sequence[str], max_repeats: int) -> Sequence[str]:
    """The words that come more often than allowed on end and fill 12 words or more, or nothing."""
    for period in range(1, min(len(said) // (max_repeats + 1), 60) + 1):
        same = 0
        for position in range(period, len(said)):
            same = same + 1 if said[position] == said[position - period] else 0
            if same >= max_repeats * period and same + period >= 12:
                return said[position - period + 1 : position + 1]
    return ()


def _repeated_share(said: Sequence[str], length: int = 4) -> float:
    """Share of the sequences of ``length`` words that have occurred before."""
    sequences = list(zip(*(said[start:] for start in range(length)), strict=False))
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0
