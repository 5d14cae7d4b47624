import json
import math
from pathlib import Path

import pytest

from synthalign.evals.answers import matched, read_answers
from synthalign.evals.samples import sample_rows
from synthalign.types import Question, Reply


def saved(tmp_path, *rows):
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def asked(*ids, text="Is there a cup?"):
    return [Question(one, Path("a.png"), text, "random", "yes") for one in ids]


def refused(file):
    with pytest.raises(ValueError) as caught:
        read_answers(file)
    return str(caught.value)


@pytest.mark.parametrize("ids", ["question_id", "id"])
@pytest.mark.parametrize("texts", ["text", "answer", "reply", "response", "output", "model_answer", "caption"])
def test_an_answer_is_read_under_any_of_its_usual_names(tmp_path, ids, texts):
    file = saved(tmp_path, {ids: 7, texts: "No."}, {ids: "b c", texts: ""})
    assert read_answers(file) == {"7": Reply("No."), "b c": Reply("")}


def test_lines_and_an_array_with_a_mark_and_carriage_returns_read_alike(tmp_path):
    rows = [{"question_id": 1, "text": "Yes, é\u2028"}, {"question_id": 2, "text": "No"}]
    want = {"1": Reply("Yes, é\u2028"), "2": Reply("No")}
    forms = {
        "lines": "".join(json.dumps(row) + "\n" for row in rows),
        "unended": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "dos": "\ufeff" + "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows),
        "array": "\ufeff" + json.dumps(rows, indent=1),
    }
    for name, text in forms.items():
        (tmp_path / name).write_bytes(text.encode())
        assert read_answers(tmp_path / name) == want, name


def test_our_own_samples_give_back_the_raw_reply_with_its_margin(tmp_path):
    reply = Reply("I cannot tell", truncated=True, yes_margin=-1.5)
    rows = sample_rows(asked("random/1"), [reply], [{"answer": "yes", "correct": True, "yes_margin": -1.5}])
    assert read_answers(saved(tmp_path, *rows)) == {"random/1": reply}


def test_a_whole_number_is_an_id_however_it_is_written(tmp_path):
    assert list(read_answers(saved(tmp_path, {"id": 1.0, "text": "a"}, {"id": 10**20, "text": "b"}))) == [
        "1",
        "100000000000000000000",
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "Yes"}, "no id; it must stand in 'question_id' or 'id'"),
        ({"id": True, "text": "Yes"}, "'id' must be a whole number or text, found True"),
        ({"id": 1.5, "text": "Yes"}, "'id' must be a whole number or text, found 1.5"),
        ({"id": float("nan"), "text": "Yes"}, "'id' must be a whole number or text, found nan"),
        ({"id": float("inf"), "text": "Yes"}, "'id' must be a whole number or text, found inf"),
        ({"id": "", "text": "Yes"}, "'id' must be a whole number or text, found ''"),
        ({"id": 1}, "no answer; it must stand in one of 'reply', 'text'"),
        ({"id": 1, "text": None}, "no answer"),
        ({"id": 1, "text": ["Yes"]}, "'text' must be text, found ['Yes']"),
        ({"id": 1, "reply": 4}, "'reply' must be text, found 4"),
        ({"id": 1, "text": "Is there a cup?", "answer": "Yes"}, "which is the answer, 'text' or 'answer'?"),
        ({"id": 1, "text": "Yes", "yes_margin": float("nan")}, "'yes_margin' must be a number or null, found nan"),
        ({"id": 1, "text": "Yes", "yes_margin": "1.5"}, "'yes_margin' must be a number or null, found '1.5'"),
        ({"id": 1, "text": "Yes", "yes_margin": True}, "'yes_margin' must be a number or null, found True"),
        ({"id": 1, "text": "Yes", "truncated": "no"}, "'truncated' must be true or false, found 'no'"),
        ({"id": 1, "text": "Yes", "yes_margin": []}, "'yes_margin' must be a number or null, found []"),
        ({"id": "0", "text": "Yes"}, "a second answer to '0'; ids must differ"),
    ],
)
def test_a_row_that_might_be_misread_is_refused_with_its_place(tmp_path, row, said):
    file = saved(tmp_path, {"id": 0, "text": "No"}, row)
    assert refused(file).startswith(f"{file}, line 2: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": no answers; the file is empty"),
        ("[]", ": no answers; the file is empty"),
        ('["Yes", "No"]', ", item 1: expected an object, found str"),
        ('"Yes"\n', ", line 1: expected an object, found str"),
        ('{"id": 1, "text": "Yes"}\n{"id": 2, "te', ", line 2: malformed JSON"),
        ('[{"id": 1, "text": "Yes"},\n', ", line 2: malformed JSON"),
    ],
)
def test_a_file_that_is_no_answers_is_refused(tmp_path, text, said):
    file = tmp_path / "answers.json"
    file.write_text(text)
    assert refused(file).startswith(f"{file}{said}")


def test_answers_come_in_the_questions_order():
    answers = {"b": Reply("2"), "a": Reply("1")}
    assert matched(asked("a", "b"), answers, Path("f")) == [Reply("1"), Reply("2")]


def test_missing_and_foreign_ids_are_counted_and_some_are_named():
    answers = {one: Reply("No") for one in ("a", "c ", "x", "y", "z")}
    with pytest.raises(ValueError) as caught:
        matched(asked("a", "b", "c"), answers, Path("f.jsonl"))
    assert str(caught.value) == (
        "f.jsonl: 2 of 3 questions have no answer ('b', 'c'); 4 answers belong to no question ('c ', 'x', 'y', …); "
        "is it the file of these questions?"
    )


def test_a_question_file_is_no_answers_file():
    questions = asked("a", "b", text="Is there a cup?\nAnswer in a word.")
    echo = dict.fromkeys("ab", Reply("Is there a cup?"))
    with pytest.raises(ValueError, match=r"f: every answer is its question over again"):
        matched(questions, echo, Path("f"))
    assert matched(questions, echo | {"a": Reply("")}, Path("f"))[0] == Reply("")
    assert matched([], {}, Path("f")) == []


def test_replies_that_are_their_questions_first_words_are_replies():
    questions = [*asked("a", text="Is there a cup?"), *asked("b", text="Is the cup red?")]
    assert matched(questions, dict.fromkeys("ab", Reply("Is")), Path("f")) == [Reply("Is")] * 2


def test_a_margin_beyond_all_floats_is_without_end(tmp_path):
    rows = ({"id": "a", "text": "Yes", "yes_margin": 10**400}, {"id": "b", "text": "No", "yes_margin": float("-inf")})
    assert [reply.yes_margin for reply in read_answers(saved(tmp_path, *rows)).values()] == [math.inf, -math.inf]
