"""From scored responses to (chosen, rejected), or no pair and why: the rules that pick and the gates that refuse.

A gate says why it refuses, or nothing. None of them asks a model, and a verdict depends on the texts and the gate's
fields alone. Thresholds lean towards keeping: what a gate cannot decide passes.
"""

from synthalign.pairs.balance import surplus
from synthalign.pairs.content import Echo, Empty
from synthalign.pairs.ending import CutOff, RunOn
from synthalign.pairs.language import ForeignScript, WrongLanguage
from synthalign.pairs.length import LengthRatio
from synthalign.pairs.refusal import first_drop, refuse
from synthalign.pairs.rules import BestRandom, BestWorst, Margin
from synthalign.pairs.sameness import Identical, NearIdentical
from synthalign.pairs.scores import Disagreement, TooClose
from synthalign.types import PairGate, ResponseGate

RESPONSE_GATES: tuple[ResponseGate, ...] = (Empty(), Echo(), ForeignScript(), WrongLanguage(), RunOn(), CutOff())
"""What keeps unfit responses out where nothing else is said: every gate there is for one."""

PAIR_GATES: tuple[PairGate, ...] = (Identical(), NearIdentical(), LengthRatio(), TooClose())
"""What keeps unfit pairs out where nothing else is said: every gate that needs no second reward."""

__all__ = [
    "PAIR_GATES",
    "RESPONSE_GATES",
    "BestRandom",
    "BestWorst",
    "CutOff",
    "Disagreement",
    "Echo",
    "Empty",
    "ForeignScript",
    "Identical",
    "LengthRatio",
    "Margin",
    "NearIdentical",
    "RunOn",
    "TooClose",
    "WrongLanguage",
    "first_drop",
    "refuse",
    "surplus",
]
