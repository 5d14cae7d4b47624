"""The door's commands that train nothing: what they write, and what a mistyped one says."""

import json
from pathlib import Path

import pytest
import saved_answers

from synthalign.cli import main
from synthalign.evals.pope import POPE

COCO = {
    "images": [{"id": number, "file_name": f"{number:012d}.jpg"} for number in (42, 73)],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "cup"}],
    "annotations": [{"image_id": image, "category_id": thing} for image, thing in ((42, 1), (73, 2), (73, 3))],
}
SAID = [{"image_id": 42, "caption": "A puppy and a cup."}, {"image_id": 73, "caption": "A cat."}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "instances.json").write_text(json.dumps(COCO))
    (tmp_path / "captions.json").write_text(json.dumps({"images": COCO["images"], "annotations": SAID}))
    (tmp_path / "synonyms.txt").write_text("dog, puppy\ncat\ncup\n")
    return tmp_path


def test_pope_is_built_of_cocos_instances(folder, capsys):
    main(["questions", "pope", "instances.json", "out", "--num-images", "2", "--per-image", "1"])
    assert capsys.readouterr().out.endswith("pope_adversarial.jsonl: 4 questions about 2 images in each\n")
    files = {split: folder / "out" / f"pope_{split}.jsonl" for split in ("random", "popular", "adversarial")}
    assert [question.truth for question in POPE(files=files, images=None).questions()] == ["yes", "no"] * 6


def test_chairs_truth_of_coco_scores_captions(folder, capsys):
    coco = ["--instances", "instances.json", "--captions", "captions.json", "--synonyms", "synonyms.txt"]
    saved_answers.lines(folder / "answers.jsonl", {"image_id": 42, "caption": "A dog, a cup and a cat."})
    main(["questions", "chair", "truth.jsonl", *coco, "--answers", "answers.jsonl"])
    assert capsys.readouterr().out == "What is in 1 images is in truth.jsonl\n"
    scoring = ["--truth", "truth.jsonl", "--synonyms", "synonyms.txt", "--answers", "answers.jsonl"]
    main(["score", "chair", *scoring, "--json"])
    scored = json.loads(capsys.readouterr().out)
    assert scored["metrics"]["chair_i"] == 1 / 3  # the cat; the cup is in what people said
    assert scored["about"]["truth"] == "instances and captions, plain words"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("questions", "synthalign questions: the following arguments are required: pope|chair"),
        ("questions pope x", "synthalign questions pope: the following arguments are required: out"),
        ("questions chair t --instances x --synonyms y --words fancy", "argument --words: invalid choice: 'fancy'"),
        ("report", "the following arguments are required: run; synthalign report --help says more"),
        ("gallery run --max-mb much", "argument --max-mb: invalid float value: 'much'"),
        ("convert a b --format yaml", "argument --format: invalid choice: 'yaml'"),
        ("world", "required: out"),
        ("prompts out --seeed 3", "unrecognized arguments: --seeed 3"),
    ],
)
def test_a_mistyped_command_is_one_line(command, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line.startswith("synthalign: error: ") and said in line
