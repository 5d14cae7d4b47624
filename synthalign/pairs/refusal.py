"""Asking gates in turn: the first objection counts."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from synthalign.types import Drop, PairGate, PickedPair, Reply, ResponseGate


def first_drop(gates: Iterable[Callable[..., Drop | None]], *row: Any) -> Drop | None:  # noqa: ANN401
    """Return the objection of the first gate that has one, or None; ``row`` is what the gates are asked about."""
    return next((drop for gate in gates if (drop := gate(*row)) is not None), None)


def refuse(response_gates: Sequence[ResponseGate], pair_gates: Sequence[PairGate], pair: PickedPair) -> Drop | None:
    """Return the first objection to a pair, naming the side at fault, or None."""
    for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if drop := first_drop(response_gates, pair.question, Reply(response)):
            return Drop(drop.reason, f"{side}: {drop.detail}")
    return first_drop(pair_gates, pair)
