"""Ranks that share the weights sit the evaluations as one rank does that has them all, uneven shares and empty ones."""

import json

import pytest


@pytest.mark.parametrize("name", ["three", "one"])
@pytest.mark.parametrize("which", ["base", "policy"])
def test_two_ranks_that_share_the_weights_say_what_one_says(folder, which, name):
    files = [folder / f"shards-{ranks}" / "samples" / which / f"{name}.jsonl" for ranks in (1, 2)]
    one, two = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert len(one) == (9 if name == "three" else 2)
    for alone, together in zip(one, two, strict=True):
        assert together.pop("yes_margin") == pytest.approx(alone.pop("yes_margin"), rel=1e-4)
        assert together == alone


def test_the_metrics_are_those_of_one_rank(folder):
    one, two = (json.loads((folder / f"shards-{ranks}" / "results.json").read_text()) for ranks in (1, 2))
    assert one == two and one["before"] != one["after"]


def test_training_on_shards_is_the_same_bits_with_and_without(folder):
    for rank in (0, 1):
        alone, watched = (
            json.loads((folder / name / f"rank-{rank}.json").read_text()) for name in ("alone", "watched")
        )
        assert watched == alone and len(set(alone)) == 2
    history = json.loads((folder / "watched" / "results.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [0, 1, 2]
