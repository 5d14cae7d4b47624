import json
import logging
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
import pytest
import torch

from synthalign.evals.legend import legend_of
from synthalign.evals.mmhal.benchmark import TYPES, MMHal, parse_rating
from synthalign.evals.mmhal.judgements import judgements_in
from synthalign.evals.samples import sample_rows
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

    def about(self):
        return {"judge": "the answer itself", "judge_revision": "1", "judge_prompt": "none"}

    def judge(self, contents, questions, references, answers):
        assert all(content == ["Cup", "Table"] for content in contents)
        assert set(references) == {"Red."} and set(questions) == {"What colour is the cup?"}
        return [parse_rating(answer) for answer in answers]

    def release(self):
        pass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """A judge who rates an answer by its words."""

    def about(self):
        return {"judge": "words", "judge_revision": "1", "judge_prompt": "none"}

    def judge(self, contents, questions, references, answers):
        return [Judgement(min(len(answer.split()), 6), f"{answer}!", bool(answer)) for answer in answers]

    def release(self):
        pass


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
    assert (report["attribute/hallucination_rate"], report["other/hallucination_rate"]) == (1 / 2, 1)
    assert (report["attribute/n"], report["counting/n"], report["other/n"]) == (2, 1, 1)
    assert "holistic/score" not in report


def test_the_intervals_are_those_of_resampled_answers(tmp_path, images):
    scores = [0, 1, 2, 3, 4, 5, 6, 3, 3, 2, 1, 4]
    answers = [*(f"Rating: {score}" for score in scores), "unclear"]
    report, _ = judged(tmp_path, images, ["other"] * len(answers), answers, ReadsTheAnswer())
    drawn = np.random.default_rng(0).choice([*scores, 0], (40_000, len(answers)))
    for key, resampled in (("score", drawn.mean(1)), ("hallucination_rate", (drawn < 3).mean(1))):
        low, high = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf")
        assert report[f"{key}_low"] == pytest.approx(low, abs=1 / len(answers) + 1e-9)
        assert report[f"{key}_high"] == pytest.approx(high, abs=1 / len(answers) + 1e-9)
        assert report[f"{key}_low"] < report[key] < report[f"{key}_high"]


def test_one_answer_has_no_interval(tmp_path, images):
    report, _ = judged(tmp_path, images, ["other"], ["Rating: 4"], ReadsTheAnswer())
    assert report["score"] == 4 and not any(key.endswith(("_low", "_high")) for key in report)


def test_without_a_judge_there_are_rows_and_a_loud_line_but_no_figure(tmp_path, images, caplog):
    with caplog.at_level(logging.WARNING):
        report, verdicts = judged(tmp_path, images, ["attribute", "other"], ["Red.", "Blue."], None)
    assert report == {}
    assert verdicts == [{"correct": None, "judged": False}] * 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "answers are saved UNJUDGED" in record.getMessage()
    assert f"synthalign score mmhal --questions {tmp_path / 'template.json'} --answers" in record.getMessage()


def test_of_several_ranks_one_says_that_there_is_no_judge(tmp_path, images, caplog, monkeypatch):
    mmhal = MMHal(file=write(tmp_path / "t.json", [item()]), images=images)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        mmhal.verdicts([], [])
    assert len(caplog.records) == 1


def test_an_answer_is_right_from_a_rating_of_3(tmp_path, images):
    _, verdicts = judged(tmp_path, images, ["other"] * 3, ["Rating: 2", "Rating: 3", "what?"], ReadsTheAnswer())
    assert [verdict["correct"] for verdict in verdicts] == [False, True, False]


@pytest.mark.parametrize("score", [7, -1, 4.0, True, None])
def test_a_rating_outside_0_to_6_is_an_error(tmp_path, images, score):
    class Generous(ReadsTheAnswer):
        def judge(self, contents, questions, references, answers):
            return [Judgement(score, "", True)]

    with pytest.raises(ValueError, match=r"mmhal: 000-abc: the judge's rating is .*; it must be a whole number from 0"):
        judged(tmp_path, images, ["other"], ["Red."], Generous())


def test_a_judge_that_leaves_an_answer_out_is_an_error(tmp_path, images):
    class Sloppy(ReadsTheAnswer):
        def judge(self, contents, questions, references, answers):
            return [Judgement(3, "", True)]

    with pytest.raises(ValueError, match="mmhal: 1 judgements of the answers to 2 questions"):
        judged(tmp_path, images, ["other"] * 2, ["Red.", "Blue."], Sloppy())


def test_a_judges_weights_are_freed_when_it_has_judged_or_failed(tmp_path, images):
    released = []

    class Heavy(ReadsTheAnswer):
        def release(self):
            released.append(True)

    judged(tmp_path, images, ["other"], ["Rating: 3"], Heavy())
    assert released == [True]

    class Fails(Heavy):
        def judge(self, contents, questions, references, answers):
            raise RuntimeError("no memory left")

    with pytest.raises(RuntimeError, match="no memory left"):
        judged(tmp_path, images, ["other"], ["Rating: 3"], Fails())
    assert released == [True, True]


def test_any_split_of_the_answers_gives_the_same_figures(tmp_path, images):
    answers = [f"Rating: {n % 7}" if n % 5 else "unclear" for n in range(24)]
    file = write(tmp_path / "t.json", [item(TYPES[n % 8]) for n in range(24)])
    mmhal = MMHal(file=file, images=images, judge=ReadsTheAnswer())
    questions = mmhal.questions()
    verdicts = mmhal.verdicts(questions, [Reply(answer) for answer in answers])
    shares = [slice(0, 7), slice(7, 7), slice(7, 24)]
    tallies = [mmhal.tally(questions[share], verdicts[share]) for share in shares]
    assert mmhal.report(torch.stack(tallies).sum(0)) == mmhal.report(mmhal.tally(questions, verdicts))


def test_every_metric_has_a_legend(tmp_path, images):
    report, _ = judged(tmp_path, images, TYPES, ["Rating: 4"] * 8, ReadsTheAnswer())
    legends = legend_of(MMHal(file=tmp_path, images=None), report)
    assert all(any(fnmatch(key, one.pattern) for one in MMHal.legend) for key in report)
    assert {key for key, one in legends.items() if one.headline and "low" not in key and "high" not in key} == {
        "score",
        "hallucination_rate",
        "n_unparsed",
    }


def asking(tmp_path, count=4, **settings):
    rows = [item(TYPES[n], question=f"What is {n}?", image_id=f"i{n % 3}") for n in range(count)]
    return MMHal(file=write(tmp_path / "template.json", rows), images=None, **settings), rows


def test_the_benchmarks_own_file_is_matched_by_place_question_and_image(tmp_path):
    mmhal, rows = asking(tmp_path)
    filled = [row | {"model_answer": f"It is {n}."} for n, row in enumerate(rows)]
    assert mmhal.replies_in(write(tmp_path / "a.json", filled)) == [Reply(f"It is {n}.") for n in range(4)]
    with pytest.raises(
        ValueError, match=r"item 1: asks 'What is 1\?' about 'i1', where .* asks 'What is 0\?' about 'i0'"
    ):
        mmhal.replies_in(write(tmp_path / "a.json", [filled[1], filled[0], *filled[2:]]))
    with pytest.raises(ValueError, match="about 'other', where"):
        mmhal.replies_in(write(tmp_path / "a.json", [*filled[:3], filled[3] | {"image_id": "other"}]))
    with pytest.raises(ValueError, match="3 answers without ids to the 4 questions"):
        mmhal.replies_in(write(tmp_path / "a.json", filled[:3]))
    with pytest.raises(ValueError, match="every model_answer is empty"):
        mmhal.replies_in(write(tmp_path / "a.json", rows))
    with pytest.raises(ValueError, match="'model_answer' must be text, found None"):
        mmhal.replies_in(write(tmp_path / "a.json", [*filled[:3], filled[3] | {"model_answer": None}]))


def test_answers_are_matched_by_our_ids_or_by_an_image_that_one_question_is_about(tmp_path):
    mmhal, _ = asking(tmp_path)  # i0 comes twice
    ids = ["000-i0", "i1", "002-i2", "003-i0"]
    saved = [{"question_id": one, "text": one} for one in reversed(ids)]
    assert mmhal.replies_in(write(tmp_path / "a.json", saved)) == [Reply(one) for one in ids]
    by_image = [{"image_id": one.partition("-")[2] or one, "answer": one} for one in ids[1:3]]
    with pytest.raises(ValueError, match=r"2 of 4 questions have no answer \('000-i0', '003-i0'\)"):
        mmhal.replies_in(write(tmp_path / "a.json", by_image))
    with pytest.raises(ValueError, match="1 answers belong to no question"):
        mmhal.replies_in(write(tmp_path / "a.json", [*saved, {"question_id": "i0", "text": "which?"}]))
    with pytest.raises(ValueError, match="two answers to '001-i1', one of them by its image_id 'i1'"):
        mmhal.replies_in(write(tmp_path / "a.json", [{"id": "001-i1", "text": "a"}, *saved]))


def test_our_own_samples_are_read_back_and_give_the_same_figures(tmp_path):
    mmhal, _ = asking(tmp_path, judge=Counts())
    questions, replies = mmhal.questions(), [Reply("long answer"), Reply("", True), Reply("x"), Reply("y z")]
    verdicts = mmhal.verdicts(questions, replies)
    rows = sample_rows(questions, replies, verdicts)
    file = tmp_path / "mmhal.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert mmhal.replies_in(file) == replies
    assert mmhal.judged(questions, judgements_in(file, questions)) == verdicts


def test_a_subset_is_the_same_with_images_and_without(tmp_path, images):
    rows = [
        item(question=f"{n}?", image_id=f"{10 * (8 - n):03d}", image_src=f"https://x.example/{n}.jpg") for n in range(8)
    ]
    file = write(tmp_path / "t.json", rows)
    with_images, without = (MMHal(file=file, images=one, num_images=3, seed=5) for one in (images, None))
    ids = [question.id for question in with_images.questions()]
    assert ids == [question.id for question in without.questions()] and len(ids) == 3
    filled = write(tmp_path / "a.json", [row | {"model_answer": row["question"]} for row in rows])
    assert [reply.text for reply in without.replies_in(filled)] == [question.text for question in without.questions()]


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
        ({"image_src": "http://[host/1.jpg"}, "'image_src' is no URL (Invalid IPv6 URL): 'http://[host/1.jpg'"),
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
