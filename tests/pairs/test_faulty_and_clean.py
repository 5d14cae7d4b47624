"""All gates together: every faulty pair of the fixture is caught for its reason, and no clean one is dropped."""

import inspect
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from synthalign import pairs
from synthalign.pairs import PAIR_GATES, RESPONSE_GATES, Disagreement, first_drop
from synthalign.types import Drop, PairGate, PickedPair, Reply, ResponseGate
from synthalign.world.questions import DESCRIBE, answer, draw_question
from synthalign.world.scenes import sample, spoil

LINES = (Path(__file__).parent / "faulty_and_clean.jsonl").read_text("utf-8").splitlines()
ROWS = {row["id"]: row for row in map(json.loads, LINES)}
EVERY_PAIR_GATE = (*PAIR_GATES, Disagreement(blind="blind", aware="aware"))


def judged(row: dict[str, Any]) -> Drop | None:
    """What every gate there is says to a row; one without two rewards counts as one on which they agree."""
    for side in ("chosen", "rejected"):
        reply = Reply(row[side], row.get(f"truncated_{side}", False))
        if drop := first_drop(RESPONSE_GATES, row["question"], reply):
            return drop
    margins = {name: chosen - rejected for name, (chosen, rejected) in row.get("scores", {}).items()}
    margin = sum(margins.values()) if margins else None
    pair = PickedPair(row["question"], row["chosen"], row["rejected"], margin, {"blind": 1.0, "aware": 1.0} | margins)
    return first_drop(EVERY_PAIR_GATE, pair)


def test_there_are_forty_of_each_and_every_gate_has_its_rows():
    counts = Counter(row["faulty"] for row in ROWS.values())
    assert (len(LINES), len(ROWS), counts.pop(None)) == (80, 80, 40)
    gates = {type(gate).__name__ for gate in (*RESPONSE_GATES, *EVERY_PAIR_GATE)}
    assert gates == {name for name, one in inspect.getmembers(pairs, inspect.isclass) if _is_gate(one)}
    assert {reason.replace("_", "") for reason in counts} == {name.lower() for name in gates}


def _is_gate(kind: type) -> bool:
    if kind in (PairGate, ResponseGate):
        return False
    parameters = list(inspect.signature(kind.__call__).parameters) if "__call__" in vars(kind) else []
    return parameters in (["self", "question", "reply"], ["self", "pair"])


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row["faulty"]], ids=lambda row: row["id"])
def test_a_faulty_pair_is_caught_for_its_reason(row):
    drop = judged(row)
    assert drop is not None and drop.reason == row["faulty"]


@pytest.mark.parametrize("row", [row for row in ROWS.values() if not row["faulty"]], ids=lambda row: row["id"])
def test_a_clean_pair_passes_every_gate(row):
    assert judged(row) is None


def test_what_the_offline_world_says_passes_every_gate():
    rng = Random(0)
    for number in range(300):
        meant = sample(rng, 0.8)
        seen = spoil(meant, rng, 0.4)
        for question in (rng.choice(DESCRIBE), draw_question(meant, rng)):
            told = [Reply(answer(scene, question)) for scene in (meant, seen)]
            assert [first_drop(RESPONSE_GATES, question, reply) for reply in told] == [None, None]
            if told[0] != told[1]:
                assert first_drop(PAIR_GATES, PickedPair(question, told[0].text, told[1].text)) is None, number
