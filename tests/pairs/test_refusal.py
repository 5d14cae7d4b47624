"""How gates are asked in turn."""

from synthalign.pairs import Echo, Empty, Identical, TooClose, refuse
from synthalign.types import PickedPair

QUESTION = "What is in the image?"


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
