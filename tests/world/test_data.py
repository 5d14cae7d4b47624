import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from synthalign.world import data
from synthalign.world.language import describe, parse
from synthalign.world.questions import DESCRIBE, answer
from synthalign.world.scenes import OBJECTS, THEMES, Scene

SPLITS = ("validation", "heldout")
SCENES = 30


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    data.write(out, seed=3, num_prompts=40, num_scenes=SCENES)
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scenes(split: str) -> dict[str, Scene]:
    number = 100 if split == "validation" else SCENES
    return {f"{split}-{nth + 1:04d}.png": scene for nth, scene in enumerate(data.split_scenes(split, number))}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_writes_the_same_bytes(world: Path, tmp_path: Path):
    data.write(tmp_path, seed=3, num_prompts=40, num_scenes=SCENES)
    assert contents(tmp_path) == contents(world)


def test_another_seed_changes_the_prompts_and_nothing_else(world: Path, tmp_path: Path):
    data.write(tmp_path, seed=4, num_prompts=40, num_scenes=SCENES)
    here, there = contents(world), contents(tmp_path)
    assert {name for name in here | there if here[name] != there[name]} == {"prompts.jsonl"}


def test_prompts_are_captions_with_different_questions_and_ids(world: Path):
    rows = lines(world / "prompts.jsonl")
    assert len(rows) == len({row["id"] for row in rows}) == 40
    assert [row["id"].rpartition("-")[2] for row in rows[:2]] == ["0001", "0002"]
    for row in rows:
        assert list(row) == ["id", "category", "prompt", "questions"]
        meant = parse(row["prompt"])
        assert row["category"] == meant.theme == row["id"].partition("-")[0]
        assert len(set(row["questions"])) == len(row["questions"]) == 4
        assert all(answer(meant, question) for question in row["questions"])


def test_more_prompts_begin_with_the_same_ones(world: Path, tmp_path: Path):
    data.write(tmp_path, seed=3, num_prompts=50, num_scenes=1)
    assert lines(tmp_path / "prompts.jsonl")[:40] == lines(world / "prompts.jsonl")


def test_objects_are_listed_one_a_line(world: Path):
    assert (world / "objects.txt").read_text(encoding="utf-8").splitlines() == list(OBJECTS)


@pytest.mark.parametrize("split", SPLITS)
def test_every_image_is_a_small_picture_of_its_scene(world: Path, split: str):
    assert {path.name for path in (world / split / "images").iterdir()} == set(scenes(split))
    for path in (world / split / "images").iterdir():
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((48, 48), "RGB")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["random", "popular", "adversarial"])
def test_pope_asks_as_often_for_what_is_there_as_for_what_is_not(world: Path, split: str, kind: str):
    rows, truth = lines(world / split / "pope" / f"{kind}.json"), scenes(split)
    assert [row["question_id"] for row in rows] == list(range(1, len(rows) + 1))
    asked = Counter((row["image"], row["label"]) for row in rows)
    for name, scene in truth.items():
        assert asked[name, "yes"] == asked[name, "no"] == min(3, len(scene.items))
    for row in rows:
        assert list(row) == ["question_id", "image", "text", "label"]
        assert answer(truth[row["image"]], row["text"]).lower().startswith(row["label"])
    assert len({(row["image"], row["text"]) for row in rows}) == len(rows)


def test_adversarial_negatives_keep_the_company_of_what_is_there(world: Path):
    truth = scenes("heldout")

    def in_theme(kind: str) -> float:
        rows = [row for row in lines(world / "heldout" / "pope" / f"{kind}.json") if row["label"] == "no"]
        return sum(row["text"].split()[3] in THEMES[truth[row["image"]].theme] for row in rows) / len(rows)

    assert in_theme("adversarial") > 0.6 > 0.3 > in_theme("random")


@pytest.mark.parametrize(("split", "items"), [("validation", 96), ("heldout", 192)])
def test_mmhal_has_the_benchmarks_own_keys_and_types_and_true_references(world: Path, split: str, items: int):
    rows, truth = json.loads((world / split / "mmhal.json").read_text(encoding="utf-8")), scenes(split)
    assert len(rows) == items
    assert set(Counter(row["question_type"] for row in rows).values()) == {items // 8}
    for row in rows:
        assert list(row) == [
            "question_type",
            "question_topic",
            "image_id",
            "image_src",
            "image_content",
            "question",
            "gt_answer",
            "model_answer",
        ]
        scene = truth[row["image_src"]]
        assert row["image_content"] == sorted(scene.kinds)
        assert row["gt_answer"] == answer(scene, row["question"])
        assert row["model_answer"] == ""
        if row["question_type"] == "adversarial":
            assert row["gt_answer"].startswith("There is no ")


@pytest.mark.parametrize("split", SPLITS)
def test_captions_list_what_is_in_each_image(world: Path, split: str):
    rows, truth = lines(world / split / "captions.jsonl"), scenes(split)
    assert [row["image"] for row in rows] == list(truth)
    for row in rows:
        assert list(row) == ["id", "image", "question", "objects"]
        assert row["objects"] == sorted(truth[row["image"]].kinds)
        assert row["question"] in DESCRIBE


def test_no_scene_is_in_both_splits():
    validation, heldout = ({describe(scene) for scene in data.split_scenes(split, 100)} for split in SPLITS)
    assert not validation & heldout


@pytest.mark.parametrize("wrong", [{"num_prompts": 0}, {"questions_per_prompt": 21}, {"num_scenes": -1}])
def test_impossible_numbers_are_refused(tmp_path: Path, wrong: dict[str, int]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        data.write(tmp_path / "world", seed=0, **wrong)
    assert not (tmp_path / "world").exists()
