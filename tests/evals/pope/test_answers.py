import json

import pytest
from pope_questions import reported, row, write

from synthalign.evals.pope import POPE
from synthalign.evals.samples import sample_rows
from synthalign.types import Reply

THINGS = {"random": ["cup", "dog", "cat"], "popular": ["cup", "car"]}
SAID = {"random": ["Yes", "No", ""], "popular": ["No\n", "yes"]}
SUFFIX = "\nAnswer the question using a single word or phrase."


def asked(thing):
    return f"Is there a {thing} in the image?"


@pytest.fixture
def pope(tmp_path):
    files = {
        split: write(
            tmp_path / f"{split}.json",
            [row(number, image=f"val/{number % 2}.jpg", text=asked(thing)) for number, thing in enumerate(things, 1)],
        )
        for split, things in THINGS.items()
    }
    return POPE(files=files, images=None)


def answered(tmp_path, make, key=None):
    """Write a file per split, of one row per question, and return them by split."""
    return {
        split: write(
            tmp_path / f"answers_{split}.jsonl",
            [
                make(number, thing, text)
                for number, (thing, text) in enumerate(zip(things, SAID[split], strict=True), 1)
            ],
        )
        for split, things in THINGS.items()
    }


def texts(replies):
    return [reply.text for reply in replies]


@pytest.mark.parametrize(
    "make",
    [
        lambda number, thing, text: {"question_id": number, "text": text},
        lambda number, thing, text: {"question_id": str(number), "answer": text, "image": f"{number % 2}.jpg"},
        lambda number, thing, text: {"question_id": number, "text": text, "image": f"/far/away/val/{number % 2}"},
        lambda number, thing, text: {"question_id": number, "text": text, "prompt": "asked otherwise"},
        lambda number, thing, text: {"question": asked(thing).lower(), "answer": text},  # the authors': no ids
        lambda number, thing, text: {"question": asked(thing) + SUFFIX, "answer": text},
        lambda number, thing, text: {"question": asked(thing).replace("image", "imange"), "answer": text},
    ],
)
def test_answers_of_each_split_match_by_id_or_without_ids_by_their_order(pope, tmp_path, make):
    assert texts(pope.replies_in(answered(tmp_path, make))) == [*SAID["random"], *SAID["popular"]]


def test_answers_of_another_split_with_the_same_ids_are_refused(pope, tmp_path):
    files = answered(
        tmp_path, lambda number, thing, text: {"question_id": number, "prompt": asked(thing), "text": text}
    )
    rows = files["popular"].read_text().splitlines()
    files["popular"].write_text("\n".join([rows[0], rows[1].replace("a car", "a dog")]))
    with pytest.raises(
        ValueError, match=r"line 2: an answer to '.* dog in the image\?', but popular/2 asks .*image\?';"
    ):
        pope.replies_in(files)


def test_the_order_of_answers_with_ids_does_not_matter(pope, tmp_path):
    files = answered(tmp_path, lambda number, thing, text: {"question_id": number, "text": text})
    for file in files.values():
        file.write_text("\n".join(reversed(file.read_text().splitlines())))
    assert texts(pope.replies_in(files)) == [*SAID["random"], *SAID["popular"]]


def test_a_file_of_our_own_samples_holds_all_splits_and_gives_the_same_figures(pope, tmp_path):
    questions = pope.questions()
    replies = [Reply("Yes", True, 1.5), Reply("No", False, -2.0), Reply("", False, 0.25), Reply("no"), Reply("No.")]
    samples = write(tmp_path / "pope.jsonl", sample_rows(questions, replies, pope.verdicts(questions, replies)))
    read = pope.replies_in({"random": samples, "popular": samples})
    assert read == replies
    assert reported(pope, read) == reported(pope, replies)


@pytest.mark.parametrize("order", [("random", "popular"), ("popular", "random")])
def test_llavas_one_file_for_all_splits_is_matched_by_its_prompts_whichever_split_comes_first(pope, tmp_path, order):
    rows = [(thing, text) for split in order for thing, text in zip(THINGS[split], SAID[split], strict=True)]
    file = write(
        tmp_path / "llava.jsonl",
        [
            {"question_id": 90 + at, "prompt": asked(thing) + SUFFIX, "text": text}
            for at, (thing, text) in enumerate(rows)
        ],
    )
    assert texts(pope.replies_in({"random": file, "popular": file})) == [*SAID["random"], *SAID["popular"]]


def test_answers_to_a_subset_are_those_to_its_images_alone(pope, tmp_path):
    part = POPE(files=pope.files, images=None, num_images=1, seed=3)
    kept = {question.id for question in part.questions()}
    assert 0 < len(kept) < 5
    rows = [{"id": f"{split}/{at}", "reply": text} for split in SAID for at, text in enumerate(SAID[split], 1)]
    all_of_them = write(tmp_path / "all.jsonl", rows)
    with pytest.raises(ValueError, match="answers belong to no question"):
        part.replies_in(dict.fromkeys(part.splits, all_of_them))
    some = write(tmp_path / "some.jsonl", [one for one in rows if one["id"] in kept])
    assert texts(part.replies_in(dict.fromkeys(part.splits, some))) == [
        one["reply"] for one in rows if one["id"] in kept
    ]


PLAIN = [{"question_id": number, "text": text} for number, text in enumerate(SAID["random"], 1)]
ASKED = [
    {"question": asked(thing), "answer": text} for thing, text in zip(THINGS["random"], SAID["random"], strict=True)
]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (PLAIN[:2], r"1 of 3 questions have no answer \('random/3'\)"),
        ([*PLAIN, {"question_id": 4, "text": "No"}], r"1 answers belong to no question \('random/4'\)"),
        ([*PLAIN[:2], {"question_id": 7, "text": "No"}], r"1 of 3 questions .*; 1 answers belong to no question"),
        ([*PLAIN, PLAIN[0]], "line 4: a second answer to '1'"),
        ([*PLAIN[:2], {"text": "No"}], "line 3: no id"),
        ([*PLAIN[:2], {"question_id": 3}], "line 3: no answer"),
        (
            [*PLAIN[:2], {**PLAIN[2], "image": "val/0.jpg"}],
            r"line 3: about the image 'val/0\.jpg', but random/3 is .*'1",
        ),
        ([*PLAIN[:2], {**PLAIN[2], "image": "other/1.jpg"}], "line 3: about the image"),
        (ASKED[:2], "2 answers to 3 questions"),
        ([*ASKED, ASKED[0]], "4 answers to 3 questions"),
        (
            [ASKED[0], ASKED[2], ASKED[1]],
            r"line 2: an answer to 'Is there a cat in the image\?' where the question is 'Is there a dog in .*\?'; "
            "answers without the questions' ids must be in the order of the questions",
        ),
        ([*ASKED[:2], {"answer": "No"}], "line 3: neither an id of the questions nor a 'question'"),
        ([*ASKED[:2], {**ASKED[2], "answer": None}], "line 3: 'answer' must be text, found None"),
        ([*ASKED[:2], {**ASKED[2], "image": "val/0.jpg"}], "line 3: about the image"),
        ([], "no answers"),
    ],
)
def test_what_does_not_belong_to_the_questions_one_to_one_is_one_line_and_no_number(pope, tmp_path, rows, complaint):
    one = POPE(files={"random": pope.files["random"]}, images=None)
    with pytest.raises(ValueError, match=complaint) as caught:
        one.replies_in({"random": write(tmp_path / "answers.jsonl", rows)})
    assert "\n" not in str(caught.value)


def test_ids_of_one_split_cannot_answer_for_several(pope, tmp_path):
    file = write(tmp_path / "answers.jsonl", [*PLAIN, *PLAIN[:2]])
    with pytest.raises(ValueError, match="line 4: a second answer to '1'"):
        pope.replies_in({"random": file, "popular": file})
    file = write(tmp_path / "answers.jsonl", [{"question_id": at, "text": "No"} for at in range(5)])
    with pytest.raises(ValueError, match=r"line 1: neither an id of the questions .* every split its file"):
        pope.replies_in({"random": file, "popular": file})


def test_a_split_without_answers_and_answers_without_a_split_are_named(pope, tmp_path):
    files = answered(tmp_path, lambda number, thing, text: {"question_id": number, "text": text})
    with pytest.raises(ValueError, match="no answers to the split 'popular'; there are some to random"):
        pope.replies_in({"random": files["random"]})
    with pytest.raises(ValueError, match="answers to a split 'adversarial'; the questions' are random, popular"):
        pope.replies_in({**files, "adversarial": files["random"]})


def test_answers_may_be_one_json_array(pope, tmp_path):
    one = POPE(files={"random": pope.files["random"]}, images=None)
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(PLAIN, indent=1))
    assert texts(one.replies_in({"random": file})) == SAID["random"]
