import json
import logging
import math
import statistics
from dataclasses import dataclass

import pytest

from synthalign.evals.mmhal import TYPES, MMHal, parse_rating
from synthalign.types import Judgement, Reply


def item(kind="attribute", image_src="https://host.example/a/010.png?size=o", **fields):
    return {
        "question_type": kind,
        "question_topic": "food",
        "image_id": "abc",
        "image_src": image_src,
        "image_content": ["Cup", "Table"],
        "question": "What colour is the cup?",
        "gt_answer": "Red.",
        "model_answer": "",
    } | fields


def write(path, items):
    path.write_text(json.dumps(items, indent=2))
    return path


@dataclass(frozen=True, kw_only=True)
class ReadsTheAnswer:
    """A judge for whom the answer is what a judge would have written."""

    def judge(self, contents, questions, references, answers):
        assert all(content == ["Cup", "Table"] for content in contents)
        assert set(references) == {"Red."} and set(questions) == {"What colour is the cup?"}
        return [parse_rating(answer) for answer in answers]


def judged(tmp_path, images, kinds, answers, judge):
    file = write(tmp_path / "template.json", [item(kind) for kind in kinds])
    mmhal = MMHal(file=file, images=images, judge=judge)
    questions = mmhal.questions()
    verdicts = mmhal.verdicts(questions, [Reply(answer) for answer in answers])
    return mmhal.report(mmhal.tally(questions, verdicts)), verdicts


@pytest.mark.parametrize(
    ("text", "score", "parsed"),
    [
        ("Good.\nRating: 6", 6, True),
        ("RATING: 0", 0, True),
        ("rating: 4, very informative", 4, True),
        ("Rating: 3. Again, rating: 3", 3, True),
        ("Rating: 10", 1, True),  # as the official script reads it
        ("Rating: 2 or rating: 5", 0, False),
        ("Rating:3", 0, False),
        ("**Rating**: 3", 0, False),
        ("Rating: 7", 0, False),
        ("", 0, False),
    ],
)
def test_a_rating_is_the_one_digit_after_rating_colon_space(text, score, parsed):
    assert parse_rating(text) == Judgement(score, text, parsed)


def test_figures_by_hand(tmp_path, images):
    kinds = ["attribute", "attribute", "counting", "other"]
    report, _ = judged(tmp_path, images, kinds, ["Rating: 6", "Rating: 2", "Rating: 3", "so so"], ReadsTheAnswer())
    assert report["score"] == (6 + 2 + 3 + 0) / 4
    assert report["score_parsed"] == pytest.approx((6 + 2 + 3) / 3)
    assert report["hallucination_rate"] == 2 / 4  # the 2, and the one that could not be read
    assert (report["n"], report["n_unparsed"]) == (4, 1)
    assert (report["attribute/score"], report["counting/score"], report["other/score"]) == (4, 3, 0)
    assert (report["attribute/n"], report["counting/n"], report["other/n"]) == (2, 1, 1)
    assert "holistic/score" not in report


def test_the_interval_is_that_of_a_mean(tmp_path, images):
    scores = [0, 1, 2, 3, 4, 5, 6, 3, 3, 2, 1, 4]
    answers = [f"Rating: {score}" for score in scores]
    report, _ = judged(tmp_path, images, ["other"] * len(scores), answers, ReadsTheAnswer())
    half = 1.96 * statistics.stdev(scores) / math.sqrt(len(scores))
    assert report["score_low"] == pytest.approx(statistics.mean(scores) - half)
    assert report["score_high"] == pytest.approx(statistics.mean(scores) + half)


def test_without_a_judge_there_are_rows_and_a_loud_line_but_no_figure(tmp_path, images, caplog):
    with caplog.at_level(logging.WARNING):
        report, verdicts = judged(tmp_path, images, ["attribute", "other"], ["Red.", "Blue."], None)
    assert report == {}
    assert verdicts == [{"judged": False}, {"judged": False}]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "2 answers are saved UNJUDGED" in record.getMessage()


def test_a_rating_outside_0_to_6_is_an_error(tmp_path, images):
    class Generous(ReadsTheAnswer):
        def judge(self, contents, questions, references, answers):
            return [Judgement(7, "", True)]

    with pytest.raises(ValueError, match=r"rated 000-abc 7, outside 0\.\.6"):
        judged(tmp_path, images, ["other"], ["Red."], Generous())


@pytest.mark.parametrize("source", ["010.png", "http://host.example/o%2F/010.png", "https://x.example/010.png?a=b/c"])
def test_an_image_is_found_under_the_end_of_its_url(tmp_path, images, source):
    file = write(tmp_path / "t.json", [item(image_src=source)])
    assert MMHal(file=file, images=images).questions()[0].image == images / "010.png"


def test_an_image_is_found_under_its_id_with_any_ending(tmp_path, images):
    file = write(tmp_path / "t.json", [item(image_src="https://host.example/gone.jpg", image_id="020")])
    assert MMHal(file=file, images=images).questions()[0].image == images / "020.png"


def test_the_question_type_counts_and_not_the_position(tmp_path, images):
    file = write(tmp_path / "t.json", [item(kind) for kind in reversed(TYPES)])
    questions = MMHal(file=file, images=images).questions()
    assert [question.kind for question in questions] == list(reversed(TYPES))
    assert len({question.id for question in questions}) == len(TYPES)  # though all have one image_id


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"question_type": "taste"}, "unknown question_type 'taste'"),
        ({"image_content": "Cup"}, "'image_content' must be a list of texts, found 'Cup'"),
        ({"gt_answer": None}, "'gt_answer' must be text, found None"),
        ({"question": 3}, "'question' must be text, found 3"),
        ({"image_src": "https://host.example/gone.jpg"}, "no image 'gone.jpg'"),
        ({"image_src": "../secret.png"}, "leads out of its folder"),
        ({"image_src": "/etc/hosts"}, "leads out of its folder"),
    ],
)
def test_a_bad_row_is_named_by_file_place_and_value(tmp_path, images, fields, complaint):
    (tmp_path / "secret.png").write_bytes(b"")
    file = write(tmp_path / "t.json", [item(), item(**fields)])
    with pytest.raises(ValueError) as caught:
        MMHal(file=file, images=images).questions()
    assert "t.json, item 2: " in str(caught.value) and complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_image_folder_and_an_empty_file_are_errors(tmp_path, images):
    file = write(tmp_path / "t.json", [])
    with pytest.raises(ValueError, match="no questions"):
        MMHal(file=file, images=images).questions()
    with pytest.raises(ValueError, match="no image folder"):
        MMHal(file=file, images=tmp_path / "absent").questions()
