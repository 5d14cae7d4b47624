import json
from pathlib import Path

import pytest

from synthalign.evals.samples import bring, merge_parts, sample_rows, write_part
from synthalign.types import Question, Reply


def test_a_row_holds_the_question_the_reply_and_the_verdict():
    question = Question("random/1", Path("images/010.png"), "Is there a cup?", "random", "yes")
    assert sample_rows([question], [Reply("Ja,\n\u2028nein", True, -0.5)], [{"answer": "yes", "correct": True}]) == [
        {
            "id": "random/1",
            "image": "images/010.png",
            "kind": "random",
            "question": "Is there a cup?",
            "reply": "Ja,\n\u2028nein",
            "truncated": True,
            "yes_margin": -0.5,
            "truth": "yes",
            "answer": "yes",
            "correct": True,
        }
    ]


def test_parts_merge_into_the_order_of_the_questions_and_go(tmp_path):
    folder = tmp_path / "samples" / "epoch-000"
    rows = [{"id": name, "reply": "line\u2028break\nü"} for name in "dacb"]
    write_part(folder, "pope", 0, rows[:3])
    write_part(folder, "pope", 1, rows[3:])
    write_part(folder, "pope", 2, [])
    path = merge_parts(folder, "pope", 3, list("abcd"))
    merged = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert merged == sorted(rows, key=lambda row: row["id"])
    assert [file.name for file in folder.iterdir()] == ["pope.jsonl"]


def test_a_missing_part_is_named_and_nothing_is_written(tmp_path):
    write_part(tmp_path, "pope", 0, [{"id": "a"}])
    with pytest.raises(ValueError, match="of rank 1 is missing; the ranks must share the run's folder"):
        merge_parts(tmp_path, "pope", 2, ["a", "b"])
    assert not (tmp_path / "pope.jsonl").exists()


def test_a_missing_question_is_an_error(tmp_path):
    write_part(tmp_path, "pope", 0, [{"id": "a"}])
    with pytest.raises(ValueError, match="hold 1 questions where 2 were asked"):
        merge_parts(tmp_path, "pope", 1, ["a", "b"])


def test_samples_of_the_run_before_are_brought_and_those_at_hand_stay(tmp_path):
    for run, label in (("old", "a"), ("old", "b"), ("new", "b")):
        (tmp_path / run / label).mkdir(parents=True)
        (tmp_path / run / label / "pope.jsonl").write_text(run)
    assert bring(["a", "b", "c"], tmp_path / "old", tmp_path / "new") == [tmp_path / "old" / "c"]
    assert [(tmp_path / "new" / label / "pope.jsonl").read_text() for label in "ab"] == ["old", "new"]
