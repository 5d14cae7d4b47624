"""Mixtures of rewards in a synthesis: parts land apart, weights count, witnesses are kept for the gates."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_synthesis import prompt_rows, shard_bytes, small_synthesis, write_prompts

from synthalign.pairs import BestWorst, Disagreement
from synthalign.pipeline import Synthesis, making
from synthalign.pipeline.items import questions
from synthalign.rewards.clip import CLIPReward
from synthalign.rewards.mixture import ImageMixture, ResponseMixture
from synthalign.rewards.sequence_classification import SequenceClassificationReward
from synthalign.rewards.vlm_judge import VLMJudge
from synthalign.tables import PromptRow
from synthalign.types import ImageReward, ResponseReward
from synthalign.vlm import VLM


@pytest.fixture(scope="module")
def mixed(tiny_llava: Path, tiny_clip: Path, tiny_reward: Path, tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """Two image rewards, of which one only watches, and two of responses."""
    folder = tmp_path_factory.mktemp("mixed")
    write_prompts(folder / "prompts.jsonl", prompt_rows(4))
    models = {"llava": str(tiny_llava), "clip": str(tiny_clip), "reward": str(tiny_reward)}
    images: dict[str, ImageReward] = {
        "one": CLIPReward(model=models["clip"]),
        "other": CLIPReward(model=models["clip"], batch_size=3),
    }
    responses: dict[str, ResponseReward] = {
        "blind": SequenceClassificationReward(model=models["reward"]),
        "aware": VLMJudge(judge=VLM(model=models["llava"])),
    }
    synthesis = small_synthesis(
        folder,
        models,
        image_reward=ImageMixture(parts=images, weights={"one": 1.0, "other": 0.0}),
        response_reward=ResponseMixture(parts=responses, weights={"blind": 1.0, "aware": 0.5}),
    )
    synthesis.run()
    return synthesis


def rows(synthesis: Synthesis, stage: int) -> list[dict]:
    one = synthesis.stages[stage]
    return [row for shard in one.shards for row in one.landing.read(shard)]


def test_every_part_lands_its_own_scores(mixed):
    names = ["draw", "rank (one)", "rank (other)", "pick", "answer", "answer", "score (blind)", "score (aware)", "pair"]
    assert [re.sub(r" \(llava\d+\)", "", stage.name) for stage in mixed.stages] == names
    for row in rows(mixed, -1):
        blind, aware = ([one["score"] for one in find(rows(mixed, stage), row["id"])] for stage in (-3, -2))
        for candidate, first, second in zip(row["candidates"], blind, aware, strict=True):
            assert [part["reward"] for part in candidate["scores"]] == ["blind", "aware"]
            assert [part["score"] for part in candidate["scores"]] == [first, second]
            if first is not None and second is not None:
                assert candidate["score"] == pytest.approx(first + 0.5 * second, abs=1e-9)


def find(table: list[dict], row_id: str) -> list[dict]:
    return next(row["candidates"] for row in table if row["id"] == row_id)


def test_a_witness_picks_no_image(mixed):
    ones = {row["id"]: row["scores"] for row in rows(mixed, 1)}
    for row in rows(mixed, 3):
        assert row["scores"] == ones[row["id"]] and row["best"] == int(torch.tensor(row["scores"]).argmax())


def test_other_weights_score_nothing_anew(mixed, tmp_path):
    shutil.copytree(Path(mixed.store).parent, tmp_path, dirs_exist_ok=True)
    before = shard_bytes(tmp_path / "store")
    reward = replace(mixed.response_reward, weights={"blind": 0.0, "aware": 1.0})
    other = replace(
        mixed, response_reward=reward, store=str(tmp_path / "store"), prompts=str(tmp_path / "prompts.jsonl")
    )
    other.run()
    new = set(shard_bytes(tmp_path / "store")) - set(before)
    assert {name.partition("-")[0] for name in new} == {"pair"}


def test_pairs_on_which_two_parts_disagree_are_dropped(mixed, tmp_path):
    shutil.copytree(Path(mixed.store).parent, tmp_path, dirs_exist_ok=True)
    strict = replace(
        mixed,
        pair_gates=[Disagreement(blind="blind", aware="aware")],
        store=str(tmp_path / "store"),
        prompts=str(tmp_path / "prompts.jsonl"),
    )
    strict.run()
    seen = 0
    for row in rows(strict, -1):
        if row["picked"] is None:
            continue
        chosen, rejected = (row["candidates"][place]["scores"] for place in row["picked"])
        margins = [better["score"] - worse["score"] for better, worse in zip(chosen, rejected, strict=True)]
        disagree = margins[0] * margins[1] < 0
        assert (row["dropped"] == "disagreement") == disagree
        seen += disagree
    assert seen


def test_a_witness_that_gave_no_number_makes_a_disagreement_not_a_mistake():
    [one] = questions([PromptRow("cat-1", "a cat", ("What?",))])
    scores: dict[str, list[float | None]] = {"text": [1.0, 0.0], "sight": [None, 2.0]}
    said = {
        name: [
            {
                "candidates": [
                    {"responder": "a", "text": f"A cat. {n}", "truncated": False, "score": score}
                    for n, score in enumerate(column)
                ]
            }
        ]
        for name, column in scores.items()
    }
    gates = [Disagreement(blind="text", aware="sight")]
    weights = {"text": 1.0, "sight": 0.0}
    [row] = making.pair([one], {one.picture.key: b""}, said, weights, BestWorst(), [], gates, seed=0)
    assert (row["dropped"], row["detail"]) == ("disagreement", "margin 1 by text, nan by sight")
    assert row["picked"] == [0, 1]
