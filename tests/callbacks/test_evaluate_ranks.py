"""Any number of ranks comes to the same metrics and the same samples, byte by byte."""

import json
from pathlib import Path

import pytest
from several_ranks import SIZES


def seen(folder: Path, ranks: int) -> list[dict]:
    return [json.loads((folder / f"ranks-{ranks}" / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 3])
def test_each_rank_asks_and_has_judged_a_share_of_its_own(folder, ranks):
    (alone,) = seen(folder, 1)
    together = seen(folder, ranks)
    for size in map(str, SIZES):
        for what in ("asked", "rated"):
            assert sum(rank[size][what] for rank in together) == alone[size][what] > 0
    assert [rank["7"]["rated"] for rank in together] == ([8, 6] if ranks == 2 else [6, 4, 4])  # before and after
    assert [rank["1"]["asked"] for rank in together] == [alone["1"]["asked"]] + [0] * (ranks - 1)


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_has_the_metrics_of_one(folder, ranks):
    (alone,) = seen(folder, 1)
    for rank in seen(folder, ranks):
        assert rank["history"][0] == alone["history"][0]
        for size in ("8", "1"):
            assert rank[size]["metrics"] == alone[size]["metrics"] != {}


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_samples_and_results_are_the_same_bytes(folder, ranks, size):
    one, several = folder / "ranks-1" / f"{size}" / "run", folder / f"ranks-{ranks}" / f"{size}" / "run"
    labels = ["epoch-000"] if size == 7 else ["base", "policy"]  # trained on several ranks a model is another
    for label in labels:
        for name in ("pope", "mmhal", "captions"):
            file = Path("samples") / label / f"{name}.jsonl"
            assert (one / file).read_bytes() == (several / file).read_bytes() != b""
    if size != 7:
        assert (one / "results.json").read_bytes() == (several / "results.json").read_bytes()
    assert not list(several.rglob(".*"))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_judge_that_is_gone_for_one_rank_leaves_all_answers_unjudged(folder, ranks):
    run_folder = folder / f"ranks-{ranks}" / "gone" / "run"
    rows = [json.loads(line) for line in (run_folder / "samples/policy/mmhal.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and {row["correct"] for row in rows} == {None}
    results = json.loads((run_folder / "results.json").read_text())
    assert "mmhal/score" not in results["after"]
    assert results["after"]["pope/mean/f1"] > 0
    for rank in seen(folder, ranks):
        assert rank["gone"]["metrics"]["pope/mean/f1"] == pytest.approx(results["after"]["pope/mean/f1"])


def test_what_there_is_to_say_is_said_by_one_rank(several):
    _, done = several
    said = [line for line in done.stdout.splitlines() if line.startswith("Everything is in")]
    assert sum("/ranks-" in line for line in said) == 3 * 4  # once a run
    assert done.stderr.count("UNJUDGED") == 3 * 2  # the base's and the policy's
