import json

import pytest

from synthalign.evals.mmhal.judgements import judgements_in
from synthalign.types import Judgement, Question

ASKED = [Question(f"00{n}-i", None, f"{n}?", "other", {}) for n in range(3)]  # type: ignore[arg-type]


def saved(number: int, **fields):
    return {"id": f"00{number}-i", "judged": True, "score": number, "parsed": True, "judgement": f"j{number}"} | fields


def completed(text):
    return {"id": "chatcmpl-1", "model": "gpt-4", "choices": [{"index": 0, "message": {"content": text}}]}


def write(tmp_path, items):
    file = tmp_path / "judged.json"
    file.write_text(json.dumps(items))
    return file


def test_our_own_rows_are_matched_by_id(tmp_path):
    file = write(tmp_path, [saved(2), saved(0, score=0, parsed=False), saved(1)])
    by_id = judgements_in(file, ASKED)
    assert by_id == [Judgement(0, "j0", False), Judgement(1, "j1", True), Judgement(2, "j2", True)]
    assert judgements_in(file) == [by_id[2], by_id[0], by_id[1]]


def test_the_official_scripts_output_is_read_by_place_with_its_parse(tmp_path):
    texts = ["Fine.\nRating: 6", "RATING: 2.", "Rating: 1 or rating: 2"]
    file = write(tmp_path, [completed(text) for text in texts])
    expected = [Judgement(6, texts[0], True), Judgement(2, texts[1], True), Judgement(0, texts[2], False)]
    assert judgements_in(file, ASKED) == judgements_in(file) == expected
    with pytest.raises(ValueError, match="3 judgements, which have no ids, of the answers to 2 questions"):
        judgements_in(file, ASKED[:2])


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "the file is empty"),
        ([saved(0), saved(1)], r"1 of 3 questions have no answer \('002-i'\)"),
        ([saved(0), saved(1), saved(2), saved(3)], "belong to no question"),
        ([saved(0), saved(0), saved(2)], "item 2: a second judgement of '000-i'"),
        ([{"id": "000-i", "judged": False}], "item 1: not judged yet; give the file as answers, and a judge"),
        ([{"id": "000-i", "correct": None}], "item 1: not judged yet"),  # what a judge that fails leaves behind
        ([saved(0, score=7)], "'score' must be a whole number from 0 to 6, found 7"),
        ([saved(0, score=True)], "'score' must be a whole number from 0 to 6, found True"),
        ([saved(0, parsed=None)], "'parsed' must be true or false, found None"),
        ([saved(0, judgement=None)], "'judgement' must be text"),
        ([{"question_id": 1, "text": "an answer"}], "'id' must be text, found None"),
        ([completed(None)], r"no chat completion with a text in choices\[0\].message.content"),
        ([{"choices": []}], "no chat completion"),
        ([completed("Rating: 1"), {"error": "rate limit"}], "item 2: no chat completion"),
    ],
)
def test_what_is_not_one_judgement_of_each_answer_is_an_error(tmp_path, rows, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        judgements_in(write(tmp_path, rows), ASKED)
    assert "judged.json" in str(caught.value) and "\n" not in str(caught.value)
