"""From prompts to pairs: joined by id, made once, the same on any number of ranks and from any state of the disk."""

import functools
import io
import json
import pickle
import random
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from small_synthesis import (
    COUNTED,
    count_calls,
    prompt_rows,
    run_ranks,
    shard_bytes,
    small_synthesis,
    stamps,
    write_prompts,
)

from synthalign.diffusion import DiffusionGenerator
from synthalign.pairs import Empty, TooClose
from synthalign.pipeline import Synthesis, summary
from synthalign.pipeline import synthesis as journey
from synthalign.pipeline.walk import Stage
from synthalign.rewards.clip import CLIPReward
from synthalign.rewards.sequence_classification import SequenceClassificationReward
from synthalign.store import Landing, Shard, digest, recipe_of, seed_of, sign_of_life, wait_for
from synthalign.tables import read_pairs
from synthalign.types import Drop, ImageRequest, Reply
from synthalign.vlm import VLM
from synthalign.world.generator import Renderer

Table = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def models(tiny_llava: Path, tiny_clip: Path, tiny_reward: Path) -> dict[str, str]:
    return {"llava": str(tiny_llava), "clip": str(tiny_clip), "reward": str(tiny_reward)}


@pytest.fixture(scope="module")
def made(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """Five prompts, two questions each, in shards of two: run once, not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    write_prompts(folder / "prompts.jsonl", prompt_rows(5))
    synthesis = small_synthesis(folder, models)
    synthesis.run()
    return synthesis


@pytest.fixture
def mine(made: Synthesis, models: dict[str, str], tmp_path: Path) -> Synthesis:
    """A copy of what was made, to be changed."""
    shutil.copytree(Path(made.store).parent, tmp_path, dirs_exist_ok=True)
    return small_synthesis(tmp_path, models)


def rows_of(stage: Stage, shard: Shard) -> list[dict[str, Any]]:
    """A shard's rows, in however many files they landed."""
    if stage.at_once:
        return stage.landing.read(shard)
    return stage.landing.gather(shard, [item.key for item in stage.items(shard)])


def tables_of(synthesis: Synthesis) -> list[Table]:
    """Every stage's table, by id."""
    tables = []
    for stage in synthesis.stages:
        rows = [row for shard in stage.shards for row in rows_of(stage, shard)]
        tables.append({row["id"]: row for row in rows})
        assert len(tables[-1]) == len(rows)
    return tables


def num_written(synthesis: Synthesis, ids: Sequence[str] | None = None) -> int:
    """How many responses are not empty, to all questions or some: only those are scored."""
    scores = tables_of(synthesis)[-2]
    return sum(bool(one["text"].strip()) for name in ids or scores for one in scores[name]["candidates"])


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


class Calls:
    """How many rows the real parts were asked for."""

    def __init__(self, sizes: dict[str, list[int]]) -> None:
        self.sizes = sizes

    def __getitem__(self, name: str) -> int:
        return sum(self.sizes[name])

    def __eq__(self, expected: object) -> bool:
        return {name: sum(sizes) for name, sizes in self.sizes.items() if sizes} == expected

    def __repr__(self) -> str:
        return repr({name: sum(sizes) for name, sizes in self.sizes.items() if sizes})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Count what the real parts are asked for."""
    for kind, method in COUNTED:  # to be put back
        monkeypatch.setattr(kind, method, getattr(kind, method))
    return Calls({kind.__name__: count_calls(kind, method) for kind, method in COUNTED})


# What is in the tables


def test_every_prompt_and_question_is_there_once_under_its_id(made):
    draws, ranks, picks, first, second, scores, pairs = tables_of(made)
    prompts = {row["id"]: row for row in prompt_rows(5)}
    asked = {f"{name}/{q}": (name, text) for name, row in prompts.items() for q, text in enumerate(row["questions"])}
    assert set(draws) == set(ranks) == set(picks) == set(prompts)
    assert list(first) == list(second) == list(scores) == list(pairs)
    assert set(first) == set(asked)
    assert {name: row["prompt"] for name, row in draws.items()} == {
        name: row["prompt"] for name, row in prompts.items()
    }
    for table in (first, second, scores, pairs):
        assert {row_id: (row["image_id"], row["question"]) for row_id, row in table.items()} == asked


def test_candidates_are_the_generators_images_for_seeds_of_their_own(made):
    seeds = set()
    for row in tables_of(made)[0].values():
        assert [one["guidance_scale"] for one in row["candidates"]] == [5.0, 7.0]
        for k, one in enumerate(row["candidates"]):
            assert one["seed"] == seed_of(made.seed, "draw", row["id"], k)
            [image] = made.generator.generate([ImageRequest(row["prompt"], one["seed"], one["guidance_scale"])])
            assert opened(one["image"]).tobytes() == image.tobytes()
            seeds.add(one["seed"])
    assert len(seeds) == 10


def test_the_best_image_has_the_highest_score_and_the_losing_ones_are_kept(made):
    draws, ranks, picks = tables_of(made)[:3]
    for name, row in picks.items():
        images = [opened(one["image"]) for one in draws[name]["candidates"]]
        assert len(images) == made.num_images
        expected = made.image_reward.score([draws[name]["prompt"]] * len(images), images)
        torch.testing.assert_close(torch.tensor(row["scores"]), expected, check_dtype=False)
        assert row["scores"] == ranks[name]["scores"]
        assert row["scores"][row["best"]] == max(row["scores"])
        assert row["image"] == draws[name]["candidates"][row["best"]]["image"]
    assert len({row["best"] for row in picks.values()}) == 2


def best_image(made: Synthesis, name: str) -> bytes:
    return tables_of(made)[2][name]["image"]


def test_each_responder_answers_each_question_about_the_best_image_with_noise_of_its_own(made):
    answers = tables_of(made)[3:5]
    for responder, table in zip(made.responders, answers, strict=True):
        key = digest([recipe_of(responder), 0])
        for row_id in ("kitchen-0/0", "road-1/1", "kitchen-4/1"):
            row = table[row_id]
            image = opened(best_image(made, row["image_id"])).convert("RGB")
            seeds = [seed_of(made.seed, key, row_id, sample) for sample in range(2)]
            expected = [responder.respond([image], [row["question"]], [seed])[0] for seed in seeds]
            assert row["responses"] == [{"text": one.text, "truncated": one.truncated} for one in expected]
            assert row["responder"] == Path(responder.model).name
    texts = [one["text"] for table in answers for row in table.values() for one in row["responses"]]
    assert len(set(texts)) > 0.9 * len(texts)


def test_responses_are_scored_with_question_and_drawing_prompt(made):
    draws, _, _, first, second, scores, _ = tables_of(made)
    for row_id, row in scores.items():
        said = [one["text"] for table in (first, second) for one in table[row_id]["responses"]]
        assert [one["text"] for one in row["candidates"]] == said
        blank = Image.new("RGB", (1, 1))  # this reward never looks at it
        expected = made.response_reward.score(
            [draws[row["image_id"]]["prompt"]] * 4, [blank] * 4, [row["question"]] * 4, said
        )
        got = torch.tensor([one["score"] for one in row["candidates"]])
        torch.testing.assert_close(got, expected, check_dtype=False)


def test_pairs_are_best_against_worst_with_their_scores_and_image(made):
    *_, scores, pairs = tables_of(made)
    kept = 0
    for row_id, pair in pairs.items():
        assert [one["score"] for one in pair["candidates"]] == [one["score"] for one in scores[row_id]["candidates"]]
        fit = [one for one in pair["candidates"] if one["refused"] is None]
        if pair["dropped"] is not None:
            assert pair["chosen"] is pair["image"] is None and pair["detail"]
            continue
        ranked = sorted(fit, key=lambda one: one["score"])
        assert (pair["rejected"], pair["rejected_score"]) == (ranked[0]["text"], ranked[0]["score"])
        assert (pair["chosen"], pair["chosen_score"]) == (ranked[-1]["text"], ranked[-1]["score"])
        assert pair["image"]["bytes"] == best_image(made, pair["image_id"])
        kept += 1
    assert kept >= 5


def test_the_table_reads_as_pairs(made):
    pairs = read_pairs(made.table)
    table = tables_of(made)[-1]
    assert [row.id for row in pairs.rows] + [row_id for row_id, _ in pairs.dropped] != []
    assert {row.id for row in pairs.rows} | {row_id for row_id, _ in pairs.dropped} == set(table)
    for row, image in zip(pairs.rows, pairs.images, strict=True):
        assert row.margin == table[row.id]["chosen_score"] - table[row.id]["rejected_score"] > 0
        assert image.tobytes() == opened(table[row.id]["image"]["bytes"]).tobytes()
    assert made.run() == made.table


def test_diffusion_models_draw_for_the_same_journey(models, tiny_sd, tmp_path):
    write_prompts(tmp_path / "prompts.jsonl", prompt_rows(3, 1))
    size = {"height": tiny.DRAWING_SIZE, "width": tiny.DRAWING_SIZE, "num_inference_steps": 2}
    generator = DiffusionGenerator(model=str(tiny_sd), **size)
    synthesis = small_synthesis(tmp_path, models, generator=generator, num_images=3, guidance_scales=[2.0, 9.0])
    synthesis.run()
    draws, _, *_, pairs = tables_of(synthesis)
    assert [one["guidance_scale"] for one in draws["kitchen-0"]["candidates"]] == [2.0, 9.0, 2.0]
    assert len({one["image"] for row in draws.values() for one in row["candidates"]}) == 9
    assert len(pairs) == 3


# Nothing is computed twice


def test_a_second_run_computes_nothing(mine, made, calls):
    before = stamps(Path(mine.store))
    assert len(before) == sum(len(stage.shards) for stage in mine.stages) == 7 * 2
    assert mine.run() == mine.table
    assert calls == {}
    assert stamps(Path(mine.store)) == before
    assert mine.table.name == made.table.name and mine.table.read_bytes() == made.table.read_bytes()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: {"pair_gates": [TooClose(min_margin=0.5)]}, {}),
        (lambda m: {"response_gates": [Empty()]}, {}),
        (
            lambda m: {"response_reward": SequenceClassificationReward(model=m["reward"])},
            {"SequenceClassificationReward": 40},
        ),
        (lambda m: {"num_samples": 1}, {"VLM": 20, "SequenceClassificationReward": 20}),
        (
            lambda m: {"image_reward": CLIPReward(model=m["clip"], batch_size=4)},
            {"CLIPReward": 10, "VLM": 40, "SequenceClassificationReward": 40},
        ),
        (
            lambda m: {"seed": 1},
            {"Renderer": 10, "CLIPReward": 10, "VLM": 40, "SequenceClassificationReward": 40},
        ),
    ],
    ids=["pair gate", "response gate", "response reward", "samples", "image reward", "seed"],
)
def test_a_change_repeats_the_stages_from_its_own_on(change, expected, mine, models, calls):
    before = stamps(Path(mine.store))
    changed = replace(mine, **change(models))
    changed.run()
    if "SequenceClassificationReward" in expected:
        expected = {**expected, "SequenceClassificationReward": num_written(changed)}
    assert calls == expected
    after = stamps(Path(mine.store))
    assert {name: stamp for name, stamp in after.items() if name in before} == before
    assert len(after) > len(before)


def test_a_changed_responder_asks_that_one_alone(mine, models, calls):
    changed = replace(mine, responders=[mine.responders[0], VLM(model=models["llava"], max_new_tokens=5)])
    changed.run()
    assert calls == {"VLM": 20, "SequenceClassificationReward": num_written(changed)}


def test_other_questions_draw_nothing_anew(mine, calls):
    write_prompts(Path(mine.prompts), prompt_rows(5, questions=3))
    more = replace(mine)
    more.run()
    new = [f"{row['id']}/2" for row in prompt_rows(5)]  # of three questions, one is new
    assert calls == {"VLM": 5 * 2 * 2, "SequenceClassificationReward": num_written(more, new)}


@pytest.mark.parametrize("more", [7, 11], ids=["as many shards", "twice as many shards"])
def test_more_prompts_make_only_their_own_rows(more, mine, made, calls):
    before, old = mine.table, stamps(Path(mine.store))
    rows = prompt_rows(more)
    write_prompts(Path(mine.prompts), [*rows[5:], *rows[:5]])  # wherever they stand
    longer = replace(mine)
    longer.run()
    new = more - 5
    assert calls == {
        "Renderer": new * 2,
        "CLIPReward": new * 2,
        "VLM": new * 2 * 2 * 2,
        "SequenceClassificationReward": num_written(longer) - num_written(made),
    }
    for was, now in zip(tables_of(made), tables_of(longer), strict=True):
        assert len(now) == len(was) // 5 * more and {row_id: now[row_id] for row_id in was} == was
    assert {name: stamp for name, stamp in stamps(Path(mine.store)).items() if name in old} == old
    for table, number in ((before, 5), (longer.table, more)):  # both tables stand
        pairs = read_pairs(table)
        assert len(pairs.rows) + len(pairs.dropped) == 2 * number


def test_a_changed_prompt_makes_its_own_rows_alone_and_the_old_one_is_in_no_table(mine, calls):
    rows = prompt_rows(5)
    rows[2]["prompt"] = rows[2]["prompt"].replace("a red tree", "a blue tree")
    write_prompts(Path(mine.prompts), rows)
    changed = replace(mine)
    changed.run()
    written = num_written(changed, ["garden-2/0", "garden-2/1"])
    assert calls == {"Renderer": 2, "CLIPReward": 2, "VLM": 8, "SequenceClassificationReward": written}
    draws, *_, pairs = tables_of(changed)
    assert draws["garden-2"]["prompt"] == pairs["garden-2/0"]["prompt"] == rows[2]["prompt"]
    assert len(draws) == 5 and len(pairs) == 10
    write_prompts(Path(mine.prompts), prompt_rows(5))
    replace(mine).run()  # and back
    assert calls["Renderer"] == 2


def test_fewer_prompts_compute_nothing(mine, calls):
    write_prompts(Path(mine.prompts), prompt_rows(1))
    fewer = replace(mine)
    fewer.run()
    assert calls == {}
    assert set(tables_of(fewer)[-1]) == {"kitchen-0/0", "kitchen-0/1"}


def test_a_moved_store_or_model_folder_changes_nothing(mine, models, calls, tmp_path):
    Path(mine.store).rename(tmp_path / "elsewhere")
    moved = {name: str(shutil.copytree(folder, tmp_path / "models" / name)) for name, folder in models.items()}
    other = small_synthesis(tmp_path, moved, store=str(tmp_path / "elsewhere"))
    other.run()
    assert calls == {}


# The same, whatever happens


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_result_does_not_depend_on_what_was_missing(seed, mine, calls):
    store = Path(mine.store)
    expected = shard_bytes(store)
    gone = random.Random(seed).sample(sorted(expected), 7)
    for name in gone:
        (store / name).unlink()
    mine.table.unlink()
    before = stamps(store)
    mine.run()
    assert shard_bytes(store) == expected
    assert {name: stamp for name, stamp in stamps(store).items() if name in before} == before
    stages = Counter(name.partition("-")[0] for name in gone)
    assert bool(calls["Renderer"]) == bool(stages["draw"])
    assert mine.table.is_file()


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_makes_the_same_bytes(world_size, made, models, tmp_path):
    shutil.copy(made.prompts, tmp_path / "prompts.jsonl")
    shared = small_synthesis(tmp_path, models)
    run_ranks(shared, world_size)
    assert shard_bytes(Path(shared.store)) == shard_bytes(Path(made.store))
    assert shared.table.name == made.table.name and shared.table.read_bytes() == made.table.read_bytes()


def test_more_ranks_than_shards_are_no_harm(models, tmp_path):
    write_prompts(tmp_path / "prompts.jsonl", prompt_rows(1, 1))
    synthesis = small_synthesis(tmp_path, models)
    run_ranks(synthesis, 2)
    assert len(tables_of(synthesis)[-1]) == 1


def test_the_order_of_the_prompts_does_not_matter(made, models, tmp_path):
    write_prompts(tmp_path / "prompts.jsonl", prompt_rows(5)[::-1])
    other = small_synthesis(tmp_path, models)
    other.run()
    assert shard_bytes(Path(other.store)) == shard_bytes(Path(made.store))
    assert other.table.read_bytes() == made.table.read_bytes()


def test_the_size_of_shards_changes_nothing_that_is_drawn_or_said(made, models, tmp_path):
    """Batches differ then, and with them last bits."""
    write_prompts(tmp_path / "prompts.jsonl", prompt_rows(5))
    other = small_synthesis(tmp_path, models, shard_size=5)
    other.run()
    assert len(other.stages[0].shards) == 1
    for before, after in zip(tables_of(made)[3:5], tables_of(other)[3:5], strict=True):
        assert before == after
    old, new = tables_of(made)[-1], tables_of(other)[-1]
    assert {row_id: old[row_id]["chosen"] for row_id in old} == {row_id: new[row_id]["chosen"] for row_id in old}


def test_a_dead_rank_is_named_and_its_shards_are_left_to_the_next_run(made, mine, monkeypatch):
    store = Path(mine.store)
    shutil.rmtree(store)
    monkeypatch.setattr(journey, "wait_for", functools.partial(wait_for, silence_s=0.05, period_s=0.01))
    with pytest.raises(RuntimeError, match=r"rank 1 has shown no sign of life .* owes 1 shards .* start the run again"):
        mine.run(rank=0, world_size=2)
    theirs = {shard.place for stage in made.stages for shard in stage.shards[1::2]}
    own = {name for name in shard_bytes(Path(made.store)) if Path(name).name.partition("-")[0] not in theirs}
    assert set(shard_bytes(store)) == own
    assert not mine.table.exists()
    mine.run(rank=1, world_size=2)
    assert shard_bytes(store) == shard_bytes(Path(made.store))


def test_one_large_model_is_loaded_at_a_time(mine, monkeypatch):
    shutil.rmtree(mine.store)
    loaded: list[list[str]] = []
    real = Landing.write

    def write(self: Landing, *rows: Any) -> None:
        parts = [mine.image_reward, *mine.responders, mine.response_reward]
        loaded.append([type(part).__name__ for part in parts if "network" in vars(part)])
        real(self, *rows)

    monkeypatch.setattr(Landing, "write", write)
    mine.run()
    names = [[], ["CLIPReward"], [], ["VLM"], ["VLM"], ["SequenceClassificationReward"], []]
    assert loaded == [name for name in names for _ in range(2)]


def test_progress_is_shown_by_the_first_rank_alone(mine, capfd):
    shutil.rmtree(Path(mine.store))
    mine.run()
    shown = capfd.readouterr().err
    for stage in mine.stages:
        assert re.search(rf"{re.escape(stage.name)}: 100%.*5/5 .*prompt/s", shown)
    assert mine.stages[3].name == f"answer ({Path(mine.responders[0].model).name})"
    shard = mine.stages[-1].shards[1]
    mine.stages[-1].landing.path(shard).unlink()
    mine.run(rank=1, world_size=2)
    assert "pair" not in capfd.readouterr().err
    mine.stages[-1].landing.path(shard).unlink()
    mine.run()
    done = 5 - len(shard.rows)
    assert re.search(rf"pair: +{done * 20}%.*{done}/5", capfd.readouterr().err)  # what was there counts as done


def test_a_synthesis_goes_to_another_process_as_its_settings(mine):
    table = mine.table
    assert "stages" in vars(mine)
    other = pickle.loads(pickle.dumps(mine))
    assert other == mine and "stages" not in vars(other)
    assert other.table == table


# Gates, rules and odd responses


@dataclass(frozen=True, kw_only=True)
class Script:
    """A responder that says what it was told to, one text a sample, to every question."""

    texts: tuple[str, ...]

    def respond(
        self, images: Sequence[Image.Image], questions: Sequence[str], seeds: Sequence[int] | None = None
    ) -> list[Reply]:
        """Say the script, over and over."""
        return [Reply(self.texts[n % len(self.texts)], truncated=n % 2 == 1) for n in range(len(questions))]

    def release(self) -> None:
        """Hold nothing."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """A response reward: the number that a response ends with, nan included; 0 without."""

    def score(
        self, prompts: Sequence[str], images: Sequence[Image.Image], questions: Sequence[str], responses: Sequence[str]
    ) -> torch.Tensor:
        """Read the marks; an empty response must never come here."""
        marks = [re.findall(r"nan|-?\d+\.?\d*", response)[-1:] for response in responses]
        assert all(response.strip() for response in responses)
        return torch.tensor([float(mark[0]) if mark else 0.0 for mark in marks])

    def release(self) -> None:
        """Hold nothing."""


@dataclass(frozen=True, kw_only=True)
class Brightness:
    """An image reward: the mean grey level of the first image of each prompt; the others fail."""

    fails: bool = False

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> torch.Tensor:
        """Give numbers to every second image at most."""
        return torch.tensor([float("nan") if n % 2 == 0 or self.fails else 1.0 for n in range(len(images))])

    def release(self) -> None:
        """Hold nothing."""


@dataclass(frozen=True, kw_only=True)
class FirstLast:
    """A rule: the first against the last, whatever the scores."""

    def __call__(self, scores: Sequence[float], seed: int) -> tuple[int, int] | None:
        """Return the two ends."""
        return 0, len(scores) - 1


Scripted = Callable[..., Synthesis]


@pytest.fixture
def scripted(tmp_path: Path, models: dict[str, str]) -> Scripted:
    """Make pairs about one image from scripted responses."""

    def run(*texts: str, **settings: Any) -> Synthesis:
        write_prompts(tmp_path / "prompts.jsonl", prompt_rows(1, 1))
        parts = {"image_reward": Brightness(), "response_reward": Marks(), "num_samples": len(texts)}
        synthesis = small_synthesis(tmp_path, models, responders=[Script(texts=texts)], **(parts | settings))
        synthesis.run()
        return synthesis

    return run


def the_pair(synthesis: Synthesis) -> dict[str, Any]:
    [pair] = tables_of(synthesis)[-1].values()
    return pair


def test_unfit_responses_are_refused_with_their_reasons_and_the_rest_is_paired(scripted):
    echo, foreign = "Is there a dog in the image? 9", "собака 8"
    pair = the_pair(scripted("A dog. 2", "", echo, "A cat. 1", "?!", foreign, "A cow nan", "A cup. 3"))
    assert (pair["chosen"], pair["rejected"]) == ("A cup. 3", "A cat. 1")
    assert (pair["chosen_score"], pair["rejected_score"]) == (3.0, 1.0)
    assert pair["chosen_responder"] == pair["rejected_responder"] == "Script"
    assert [(one["text"], one["refused"]) for one in pair["candidates"] if one["refused"]] == [
        ("", "empty"),
        (echo, "echo"),
        ("?!", "empty"),
        (foreign, "foreign_script"),
        ("A cow nan", "unscored"),
    ]
    assert pair["dropped"] is None


@pytest.mark.parametrize(
    ("texts", "settings", "drop"),
    [
        (("", "", "A cat. 1"), {}, Drop("too_few_responses", "1 fit to be compared")),
        (("", ""), {}, Drop("too_few_responses", "0 fit to be compared")),
        (("A cat. 1", "A dog. 1"), {}, Drop("no_preference", "the rule finds no pair among 2 responses")),
        (
            ("A cat. 1", "A dog. 1.5"),
            {"pair_gates": [TooClose(min_margin=0.5)]},
            Drop("too_close", "margin 0.5 is not above 0.5"),
        ),
        (("A cat", "a cat."), {"rule": FirstLast()}, Drop("identical", "both say 'A cat'")),
    ],
)
def test_no_pair_is_kept_with_the_reason(texts, settings, drop, scripted):
    synthesis = scripted(*texts, **settings)
    pair = the_pair(synthesis)
    assert (pair["dropped"], pair["detail"]) == drop
    assert pair["chosen"] is pair["rejected"] is pair["image"] is None
    assert pair["picked"] == {"too_close": [1, 0], "identical": [0, 1]}.get(drop.reason)  # by the rule
    pairs = read_pairs(synthesis.table)
    assert pairs.rows == [] and pairs.dropped == [("kitchen-0/0", drop)]
    assert summary(0, pairs.dropped) == f"0 pairs; dropped 1 ({drop.reason} 1)"


def test_an_empty_response_is_never_paired_even_without_gates(scripted):
    pair = the_pair(scripted("A dog. 2", " ", "A cat. 1", response_gates=[], pair_gates=[]))
    assert (pair["chosen"], pair["rejected"]) == ("A dog. 2", "A cat. 1")
    refused = [(one["text"], one["refused"], one["detail"]) for one in pair["candidates"] if one["refused"]]
    assert refused == [(" ", "unscored", "empty")]


def test_another_rule_picks_otherwise(scripted):
    pair = the_pair(scripted("A dog. 1", "A cow. 9", "A cat. 3", rule=FirstLast(), pair_gates=[]))
    assert (pair["chosen"], pair["rejected"]) == ("A dog. 1", "A cat. 3")


def test_truncated_responses_are_marked(scripted):
    synthesis = scripted("A dog. 2", "A cat. 1")
    [scores] = tables_of(synthesis)[-2].values()
    assert [(one["text"], one["truncated"]) for one in scores["candidates"]] == [
        ("A dog. 2", False),
        ("A cat. 1", True),
    ]


def test_an_image_without_a_score_never_wins_and_none_with_one_is_a_mistake(scripted):
    synthesis = scripted("A dog. 2", "A cat. 1", num_images=3)
    [row] = tables_of(synthesis)[2].values()
    assert row["best"] == 1 and row["scores"] == [None, 1.0, None]
    with pytest.raises(ValueError, match="no image of 'kitchen-0' has a finite score") as caught:
        scripted("A dog. 2", "A cat. 1", image_reward=Brightness(fails=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "method", "result", "line"),
    [
        (Renderer, "generate", [], "Renderer gave 0 results for 2 inputs"),
        (Brightness, "score", torch.ones(3), r"Brightness gave scores of shape \(3,\) for 2 inputs"),
        (Script, "respond", [Reply("A dog. 2")], "Script gave 1 results for 2 inputs"),
        (Marks, "score", torch.ones(1), r"Marks gave scores of shape \(1,\) for 2 inputs"),
    ],
)
def test_a_part_that_leaves_rows_out_is_a_mistake(part, method, result, line, scripted, monkeypatch):
    monkeypatch.setattr(part, method, lambda self, *rows: result)
    with pytest.raises(ValueError, match=line):
        scripted("A dog. 2", "A cat. 1")


# Responders


def test_a_responder_listed_twice_draws_anew_the_second_time(mine, models):
    alike = [VLM(model=models["llava"], max_new_tokens=6) for _ in range(2)]
    twice = replace(mine, responders=alike, num_samples=1)
    twice.run()
    first, second = tables_of(twice)[3:5]
    assert set(first) == set(second)
    assert all(first[row_id]["responses"] != second[row_id]["responses"] for row_id in first)


def test_greedy_takes_each_responders_own_best(mine, models):
    responders = [VLM(model=models["llava"], max_new_tokens=6), VLM(model=models["llava"], max_new_tokens=3)]
    greedy = replace(mine, responders=responders, num_samples=1, greedy=True)
    greedy.run()
    for responder, table in zip(responders, tables_of(greedy)[3:5], strict=True):
        for row in table.values():
            image = opened(best_image(greedy, row["image_id"])).convert("RGB")
            expected = responder.respond([image], [row["question"]])[0]
            assert row["responses"] == [{"text": expected.text, "truncated": expected.truncated}]


# Mistakes


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"num_images": 0}, "num_images must be >= 1, got 0"),
        ({"num_samples": 0}, "num_samples must be >= 1, got 0"),
        ({"shard_size": -1}, "shard_size must be >= 1, got -1"),
        ({"responders": []}, "responders and guidance_scales must not be empty"),
        ({"guidance_scales": []}, "responders and guidance_scales must not be empty"),
        ({"greedy": True}, "greedy responses are all alike: num_samples must be 1, got 2"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change, line, made):
    with pytest.raises(ValueError) as caught:
        replace(made, **change)
    assert str(caught.value) == line


def test_a_single_response_makes_no_pair(made):
    with pytest.raises(ValueError, match="a pair needs two responses"):
        replace(made, responders=made.responders[:1], num_samples=1)


def test_a_mistake_in_the_prompts_file_is_one_line_before_anything_is_made(mine):
    lines = Path(mine.prompts).read_text().splitlines()
    Path(mine.prompts).write_text("\n".join([*lines, '{"id": "x", "prompt": }']))
    shutil.rmtree(mine.store)
    with pytest.raises(ValueError, match=r"prompts\.jsonl, line 6: malformed JSON") as caught:
        replace(mine).run()
    assert "\n" not in str(caught.value)
    assert not Path(mine.store).exists()


def test_a_prompts_file_that_changes_meanwhile_lands_nothing_under_the_name_of_other_rows(mine, made):
    shutil.rmtree(mine.store)
    assert len(mine.stages) == 7  # the file has been read
    path = Path(mine.prompts)
    path.write_text(path.read_text().replace("red", "new"))
    with pytest.raises(ValueError, match=r"prompts\.jsonl has changed since this run began: run again$"):
        mine.run()
    shutil.copy(made.prompts, mine.prompts)
    replace(mine).run()
    assert shard_bytes(Path(mine.store)) == shard_bytes(Path(made.store))


def test_ranks_whose_prompts_differ_do_not_wait_for_one_another_for_ever(mine, tmp_path, monkeypatch):
    """Both live and wait, for shards that the other one will never make."""
    monkeypatch.setattr(journey, "wait_for", functools.partial(wait_for, silence_s=0.5, period_s=0.01))
    monkeypatch.setattr(journey, "sign_of_life", functools.partial(sign_of_life, period_s=0.01))
    shutil.rmtree(mine.stages[-1].landing.folder)
    others = write_prompts(tmp_path / "others.jsonl", prompt_rows(6))
    said: dict[int, str] = {}

    def run(rank: int, synthesis: Synthesis) -> None:
        with pytest.raises(RuntimeError) as caught:
            synthesis.run(rank, world_size=2)
        said[rank] = str(caught.value)

    ranks = enumerate([mine, replace(mine, prompts=str(others))])
    threads = [threading.Thread(target=run, args=one, daemon=True) for one in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert said[0].startswith("rank 1 has shown no sign of life")
    assert said[1].startswith("rank 0 has shown no sign of life")


def test_the_summary_counts_by_reason():
    drops = [("a", Drop("empty", "")), ("b", Drop("echo", "")), ("c", Drop("empty", ""))]
    assert summary(5, drops) == "5 pairs; dropped 3 (empty 2, echo 1)"
    assert summary(5, []) == "5 pairs; dropped 0"


def test_the_recipe_beside_a_landing_says_what_made_it(made):
    for stage in made.stages:
        recipe = json.loads((stage.landing.folder / "recipe.json").read_text())
        assert digest(recipe) == stage.landing.address
    assert recipe["gates"][0]["class"].endswith(".Empty")
