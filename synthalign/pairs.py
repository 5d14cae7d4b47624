"""From scored responses to (chosen, rejected), or no pair and why."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from synthalign.store import seed_of
from synthalign.types import Drop, PairGate, PickedPair, Reply, ResponseGate


def _plain(text: str) -> str:
    """Case, punctuation and spacing apart. Signs that mean something (+ < €) and vowels above a letter stay."""
    return " ".join("".join(map(_kept, unicodedata.normalize("NFC", text.casefold()))).split())


@cache
def _kept(sign: str) -> str:
    """A space for punctuation, controls and detached accents (` ^), nothing for what is invisible, or the sign."""
    category = unicodedata.category(sign)
    if category == "Cf":
        return ""
    return " " if category[0] in "PZC" or category == "Sk" else sign


@dataclass(frozen=True, kw_only=True)
class BestWorst:
    """Choose the response with the highest score and reject the one with the lowest; ties go to the first.

    Source: Synth-Align (arXiv 2412.17417), section on response ranking.
    """

    def __call__(self, scores: Sequence[float], seed: int) -> tuple[int, int] | None:
        """Return (position of the best, position of the worst), or None if no two scores differ."""
        positions = range(len(scores))
        best = max(positions, key=scores.__getitem__, default=0)
        worst = min(positions, key=scores.__getitem__, default=0)
        return None if best == worst else (best, worst)


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
    """Refuse a response that says the question again, or begins by doing so."""

    def __call__(self, question: str, reply: Reply) -> Drop | None:
        """Say ``echo``, or None."""
        asked, said = _plain(question), _plain(reply.text)
        if asked and (said == asked or said.startswith(asked + " ")):
            return Drop("echo", f"repeats the question: {reply.text[:60]!r}")
        return None


@dataclass(frozen=True, kw_only=True)
class ForeignScript:
    """Refuse a response written in a script that the question does not use.

    Args:
        max_share: Largest share of the response's letters in other scripts than the question's, in [0, 1]: a quoted
            shop sign passes, a foreign answer does not.
    """

    max_share: float = 0.2

    def __call__(self, question: str, reply: Reply) -> Drop | None:
        """Say ``foreign_script``, or None."""
        known, scripts = _scripts(question), _scripts(reply.text)
        if KANA in known:
            known[CJK] += 1  # Japanese is written in both; a question need not show it
        foreign = {script: count for script, count in scripts.items() if script not in known}
        if known and sum(foreign.values()) > self.max_share * scripts.total():
            return Drop("foreign_script", f"{'/'.join(sorted(foreign)).lower()} letters in {reply.text[:60]!r}")
        return None


@dataclass(frozen=True, kw_only=True)
class Identical:
    """Refuse a pair whose two responses differ at most in case, punctuation and spacing."""

    def __call__(self, pair: PickedPair) -> Drop | None:
        """Say ``identical``, or None."""
        same = _plain(pair.chosen) == _plain(pair.rejected)
        return Drop("identical", f"both say {pair.chosen[:60]!r}") if same else None


@dataclass(frozen=True, kw_only=True)
class TooClose:
    """Refuse a pair that the reward model hardly tells apart.

    Args:
        min_margin: Smallest score(chosen) - score(rejected), in the reward model's unit. Unscored pairs pass.
    """

    min_margin: float = 0.0

    def __call__(self, pair: PickedPair) -> Drop | None:
        """Say ``too_close``, or None."""
        if pair.margin is not None and not pair.margin > self.min_margin:
            return Drop("too_close", f"margin {pair.margin:.4g} is not above {self.min_margin:g}")
        return None


RESPONSE_GATES: tuple[ResponseGate, ...] = (Empty(), Echo(), ForeignScript())
"""What keeps unfit responses out where nothing else is said."""

PAIR_GATES: tuple[PairGate, ...] = (Identical(), TooClose())
"""What keeps unfit pairs out where nothing else is said."""


def first_drop(gates: Iterable[Callable[..., Drop | None]], *row: Any) -> Drop | None:  # noqa: ANN401
    """Return the objection of the first gate that has one, or None; ``row`` is what the gates are asked about."""
    return next((drop for gate in gates if (drop := gate(*row)) is not None), None)


def refuse(response_gates: Sequence[ResponseGate], pair_gates: Sequence[PairGate], pair: PickedPair) -> Drop | None:
    """Return the first objection to a pair, naming the side at fault, or None."""
    for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if drop := first_drop(response_gates, pair.question, Reply(response)):
            return Drop(drop.reason, f"{side}: {drop.detail}")
    return first_drop(pair_gates, pair)


def surplus(ids: Sequence[str], chosen: Sequence[str], seed: int) -> set[str]:
    """Return the ids to leave out so that as many pairs choose "yes…" as choose "no…".

    A pool in which one of the two is rarely chosen teaches the policy to say the other one, whatever it sees. Pairs
    whose chosen response starts otherwise are left alone; which ones go depends on (seed, id) alone.
    """
    sides: dict[str, list[str]] = {"yes": [], "no": []}
    for pair_id, text in zip(ids, chosen, strict=True):
        first = _plain(text).partition(" ")[0]
        if first in sides:
            sides[first].append(pair_id)
    larger = max(sides.values(), key=len)
    excess = abs(len(sides["yes"]) - len(sides["no"]))
    return set(sorted(larger, key=lambda pair_id: seed_of(seed, "surplus", pair_id))[:excess])


def _scripts(text: str) -> Counter[str]:
    """Count the letters of a text by script."""
    return Counter(_script(letter) for letter in unicodedata.normalize("NFKC", text) if letter.isalpha())


@cache
def _script(letter: str) -> str:
    """The script of a letter, as its Unicode name begins: LATIN, CYRILLIC, CJK and so on."""
    script = unicodedata.name(letter, "UNKNOWN").partition(" ")[0]
    return KANA if script in {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"} else script


CJK, KANA = "CJK", "KANA"
