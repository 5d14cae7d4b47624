import json
from typing import Any

import pytest

from synthalign.evals.chair import CHAIR
from synthalign.evals.chair import truth as chair_truth
from synthalign.types import Reply

SYNONYMS = "person, man\ndog, puppy\ncup, mug\nhot dog\n"
NAMES = {7: "COCO_val2014_000000000007.jpg", 9: "COCO_val2014_000000000009.jpg", 11: "COCO_val2014_000000000011.jpg"}
INSTANCES: dict[str, Any] = {
    "images": [{"id": number, "file_name": name} for number, name in NAMES.items()],
    "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 58, "name": "hot dog"}],
    "annotations": [
        {"image_id": 7, "category_id": 18},
        {"image_id": 7, "category_id": 18},
        {"image_id": 7, "category_id": 1},
        {"image_id": 9, "category_id": 58},
    ],
}
CAPTIONS: dict[str, Any] = {
    "images": INSTANCES["images"],
    "annotations": [
        {"image_id": 7, "caption": "A man and his puppy."},
        {"image_id": 7, "caption": "A dog with a mug."},
        {"image_id": 9, "caption": "Lunch"},
        {"image_id": 11, "caption": "A cup on a wall, and a cup below."},
    ],
}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    (tmp_path / "captions.json").write_text(json.dumps(CAPTIONS))
    (tmp_path / "objects.txt").write_text(SYNONYMS)
    return {"instances": tmp_path / "instances.json", "synonyms": tmp_path / "objects.txt"}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_instances_alone_give_the_outlined_objects_of_every_image(tmp_path, files):
    assert chair_truth.write(tmp_path / "truth.jsonl", **files) == 3
    assert lines(tmp_path / "truth.jsonl") == [
        {"image": NAMES[7], "objects": ["dog", "person"], "truth_from": "instances"},
        {"image": NAMES[9], "objects": ["hot dog"], "truth_from": "instances"},
        {"image": NAMES[11], "objects": [], "truth_from": "instances"},
    ]


def test_what_captions_mention_is_there_too(tmp_path, files):
    chair_truth.write(tmp_path / "truth.jsonl", captions=tmp_path / "captions.json", **files)
    rows = lines(tmp_path / "truth.jsonl")
    assert [row["objects"] for row in rows] == [["cup", "dog", "person"], ["hot dog"], ["cup"]]
    assert {row["truth_from"] for row in rows} == {"instances and captions, plain words"}


def test_what_is_written_scores_captions_by_their_images_numbers(tmp_path, files):
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([{"image_id": 11, "caption": "A dog."}, {"image_id": 7, "caption": "A dog, a mug"}]))
    assert chair_truth.write(tmp_path / "truth.jsonl", answers=answers, **files) == 2
    evaluation = CHAIR(file=tmp_path / "truth.jsonl", images=None, synonyms=files["synonyms"])
    questions = evaluation.questions()
    assert [question.id for question in questions] == [NAMES[7], NAMES[11]]
    replies = evaluation.replies_in(answers)
    assert replies == [Reply("A dog, a mug"), Reply("A dog.")]
    metrics = evaluation.report(evaluation.tally(questions, evaluation.verdicts(questions, replies)))
    assert metrics["chair_i"] == 2 / 3  # the mug, without the reference captions, and the second dog
    assert evaluation.about()["truth"] == "instances"


@pytest.mark.parametrize(
    ("spoilt", "complaint"),
    [
        ({"objects.txt": "dog\nperson\n"}, f"instances.json: {NAMES[9]}: object 'hot dog' is not in"),
        (
            {"captions.json": json.dumps(CAPTIONS | {"annotations": CAPTIONS["annotations"][:3]})},
            f"captions.json: no caption of {NAMES[11]} and 0 other images of",
        ),
        (
            {"captions.json": json.dumps(INSTANCES)},
            "captions.json, annotations, item 1: 'caption' must be text, found None",
        ),
        ({"captions.json": "[]"}, "captions.json: not as COCO writes captions"),
        ({"captions.json": "{"}, "captions.json, line 1: malformed JSON"),
        ({"captions.json": json.dumps({"images": [], "annotations": [3]})}, "not as COCO writes captions: Type"),
        ({"answers.json": '[{"image_id": 8, "caption": ""}]'}, "answers.json: image '8' is not in"),
        (
            {"captions.json": json.dumps(CAPTIONS | {"images": CAPTIONS["images"][:1]})},
            "which is not in the file's 'images'; bring the whole file that belongs to",
        ),
    ],
)
def test_files_that_do_not_go_together_are_named(tmp_path, files, spoilt, complaint):
    (tmp_path / "answers.json").write_text('[{"image_id": 11, "caption": ""}, {"image_id": 9, "caption": ""}]')
    for name, text in spoilt.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as caught:
        chair_truth.write(
            tmp_path / "truth.jsonl", captions=tmp_path / "captions.json", answers=tmp_path / "answers.json", **files
        )
    assert complaint in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "truth.jsonl").exists()
