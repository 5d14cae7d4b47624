"""Gates for pairs whose two responses say the same."""

# ruff: noqa: RUF001 - the signs are meant

import re
from collections.abc import Iterable
from dataclasses import dataclass

from synthalign.pairs.wording import plain
from synthalign.types import Drop, PickedPair

FILLER = (
    *("a", "an", "the"),
    *("actually", "also", "basically", "certainly", "clearly", "indeed", "just", "quite", "really", "simply", "very"),
)
"""English words that come and go without changing what is said to be in an image."""

_SPELT_OUT = (
    (re.compile(r"\bcan(?:no|['’])t\b"), "can not"),
    (re.compile(r"\bwon['’]t\b"), "will not"),
    (re.compile(r"n['’]t\b"), " not"),
    (re.compile(r"['’]s\b"), " is"),
    (re.compile(r"['’]re\b"), " are"),
    (re.compile(r"['’]ve\b"), " have"),
    (re.compile(r"['’]ll\b"), " will"),
    (re.compile(r"['’]m\b"), " am"),
    (re.compile(r"\ba (?=few|little|lot)"), "a"),  # "few" says something else
    # Every question is about the image; whether it is named does not matter.
    (re.compile(r"\b(?:in|of) (?:the|this) (?:image|picture|photo|photograph|scene)\b"), " "),
)


@dataclass(frozen=True, kw_only=True)
class Identical:
    """Refuse a pair whose two responses differ at most in case, punctuation and spacing."""

    def __call__(self, pair: PickedPair) -> Drop | None:
        """Say ``identical``, or None."""
        same = plain(pair.chosen) == plain(pair.rejected)
        return Drop("identical", f"both say {pair.chosen[:60]!r}") if same else None


@dataclass(frozen=True, kw_only=True)
class NearIdentical:
    """Refuse a pair whose two responses differ in fillers and contractions only.

    One word that says something (red or blue, two or three, on or under, not) is a difference, however long the rest.

    Args:
        filler: Words that say nothing, in lower case; English ones by default.
    """

    filler: tuple[str, ...] = FILLER

    def __call__(self, pair: PickedPair) -> Drop | None:
        """Say ``near_identical``, or None."""
        chosen = essence(pair.chosen, self.filler)
        if not chosen or chosen != essence(pair.rejected, self.filler):
            return None
        return Drop("near_identical", f"only fillers differ: {pair.chosen[:60]!r}, {pair.rejected[:60]!r}")


def essence(text: str, filler: Iterable[str] = FILLER) -> list[str]:
    """Return the plain words of a text in order, contractions spelt out, without fillers and "in the image"."""
    spelt = text.casefold()
    for pattern, full in _SPELT_OUT:
        spelt = pattern.sub(full, spelt)
    left_out = frozenset(filler)
    return [word for word in plain(spelt).split() if word not in left_out]
