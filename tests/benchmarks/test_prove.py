"""The control of the proof is the ranked pairs with the ranking gone, and nothing else."""

import importlib.util
from collections import Counter
from pathlib import Path

PATH = Path(__file__).parents[2] / "benchmarks" / "prove.py"
spec = importlib.util.spec_from_file_location("prove", PATH)
assert spec is not None and spec.loader is not None
prove = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prove)

QUESTIONS = ("Describe the image.", "Is there a cup in the image?", "What color is the cup?")


def pairs() -> list[dict]:
    rows = []
    for number in range(61):
        question = QUESTIONS[number % 3]
        chosen = ("Yes, there is." if number % 2 else "No, there is not.") if number % 3 == 1 else "The cup is red."
        sides = {"chosen": chosen, "rejected": f"other {number}", "chosen_score": 2.0, "rejected_score": -1.0}
        rows.append(
            {"id": f"{number:03d}", "question": question, "chosen_responder": "a", "rejected_responder": "b"} | sides
        )
    return rows


def test_half_of_the_pairs_are_flipped_within_each_question_type_and_chosen_answer():
    rows = pairs()
    before = {row["id"]: dict(row) for row in rows}
    mixed = prove.half_flipped(rows, seed=0)
    assert sorted(row["id"] for row in mixed) == sorted(before)
    flips: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for row in mixed:
        was = before[row["id"]]
        group = (was["question"], was["chosen"].split()[0])
        sizes[group] += 1
        if row != was:
            flips[group] += 1
            assert (row["chosen"], row["rejected"]) == (was["rejected"], was["chosen"])
            assert (row["chosen_score"], row["rejected_score"]) == (was["rejected_score"], was["chosen_score"])
            assert (row["chosen_responder"], row["rejected_responder"]) == ("b", "a")
    assert len(sizes) == 4
    assert all(abs(2 * flips[group] - sizes[group]) <= 1 for group in sizes)
    assert abs(2 * flips.total() - sizes.total()) <= 1


def test_the_flips_depend_on_the_seed_alone():
    chosen = [[row["chosen"] for row in prove.half_flipped(pairs(), seed)] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
