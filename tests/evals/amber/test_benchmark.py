import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from synthalign.evals.amber import AMBER
from synthalign.evals.legend import headlines, legend_of
from synthalign.evals.samples import sample_rows
from synthalign.types import Reply

GOLDEN = json.loads(Path(__file__).with_name("amber_golden.json").read_text())

RELATED = {"person": ["woman"], "dog": [], "sky": [], "car": ["wheel"], "cup": []}
ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["person", "dog"], "hallu": ["sky"]},
    {"id": 2, "type": "generative", "truth": ["car"], "hallu": ["person", "dog"]},
    {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 4, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 5, "type": "discriminative-attribute-number", "truth": "no"},
    {"id": 6, "type": "discriminative-attribute-action", "truth": "yes"},
    {"id": 7, "type": "discriminative-relation", "truth": "yes"},
    {"id": 8, "type": "relation", "truth": "no"},
]
IMAGES = ["1.jpg", "2.jpg", "1.jpg", "1.jpg", "1.jpg", "2.jpg", "2.jpg", "2.jpg"]
QUERIES = [
    {"id": one["id"], "image": image, "query": f"Question {one['id']}?"}
    for one, image in zip(ANNOTATIONS, IMAGES, strict=True)
]
ANSWERS = ["A woman with a cup.", "A car under the sky.", "No", "Yes", "no", "No", "Yes", "No"]


def write(folder, *, annotations=ANNOTATIONS, queries=QUERIES, related=RELATED, safe=("sky",), query="all"):
    (folder / "query").mkdir(parents=True, exist_ok=True)
    (folder / "query" / f"query_{query}.json").write_text(json.dumps(queries))
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "relation.json").write_text(json.dumps(related))
    (folder / "safe_words.txt").write_text("\n".join(safe))
    return folder


def replies(texts):
    return [Reply(text, False, None) for text in texts]


def scored(amber, said):
    questions = amber.questions()
    return amber.report(amber.tally(questions, amber.verdicts(questions, said)))


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data")


def test_figures_by_hand(data):
    # mentioned: woman (allows person), cup (invented); car, sky (safe). 2 of 3 objects; no trap, since sky is safe.
    metrics = scored(AMBER(folder=data, images=None), replies(ANSWERS))
    assert metrics["generative/chair"] == 1 / 4.001
    assert metrics["generative/cover"] == 2 / 3.001
    assert metrics["generative/hal"] == pytest.approx(1 - 1 / 2.001)
    assert metrics["generative/cog"] == 0
    assert metrics["generative/words"] == 5.0
    # right: 3, 4, 7, 8. Truth is no in 3, 5, 8; No was said to 3, 6, 8, and `no` to 5 is no answer.
    assert metrics["discriminative/accuracy"] == 4 / 6.001
    assert metrics["discriminative/precision"] == metrics["discriminative/recall"] == 2 / 3.001
    assert metrics["discriminative/f1"] == pytest.approx(2 * 0.666**2 / (2 * 0.666 + 0.0001))
    assert metrics["n_unparsed"] == metrics["discriminative/n_unparsed"] == metrics["number/n_unparsed"] == 1
    assert metrics["attribute/accuracy"] == 1 / 3.003
    assert metrics["relation/accuracy"] == 2 / 2.001
    assert metrics["score"] == (1 - metrics["generative/chair"] + metrics["discriminative/f1"]) / 2
    counts = {key: value for key, value in metrics.items() if key.rpartition("/")[2] == "n"}
    assert counts == {
        **{"n": 8, "generative/n": 2, "discriminative/n": 6, "existence/n": 1, "attribute/n": 3},
        **{"state/n": 1, "number/n": 1, "action/n": 1, "relation/n": 2},
    }


@pytest.mark.parametrize("run", GOLDEN["runs"], ids=["first", "second"])
def test_all_figures_are_those_the_original_prints(tmp_path, run):
    folder = write(
        tmp_path,
        annotations=GOLDEN["annotations"],
        queries=GOLDEN["queries"],
        related=GOLDEN["relation"],
        safe=GOLDEN["safe_words"],
    )
    (tmp_path / "answers.json").write_text(json.dumps(run["answers"]))
    amber = AMBER(folder=folder, images=None)
    metrics = scored(amber, amber.replies_in(tmp_path / "answers.json"))
    assert len(run["printed"]) == 32
    assert {key: round(100 * metrics[key], 1) for key in run["printed"]} == run["printed"]


@pytest.mark.parametrize("text", ["yes", "NO", "Yes.", " Yes", "No\n", "", "No, there is none"])
def test_only_the_exact_replies_yes_and_no_count(data, text):
    amber = AMBER(folder=data, images=None)
    for question in amber.questions()[2:]:
        assert amber.verdicts([question], replies([text])) == [{"answer": None, "correct": False}]


def test_a_verdict_lists_what_is_mentioned_invented_covered_and_expected(data):
    amber = AMBER(folder=data, images=None)
    (verdict,) = amber.verdicts(amber.questions()[1:2], replies(["Two dogs, a wheel, a cup and a dog."]))
    assert verdict == {
        "correct": False,
        "mentioned": ["dog", "wheel", "cup", "dog"],
        "invented": ["dog", "cup", "dog"],
        "covered": ["car"],
        "expected": ["dog"],
        "words": 9,
    }


def test_tallies_of_parts_add_up_however_the_table_is_cut(data):
    amber = AMBER(folder=data, images=None)
    questions, said = amber.questions(), replies(ANSWERS)
    whole = amber.tally(questions, amber.verdicts(questions, said))
    for cuts in ([0, 1, 8], [0, 3, 3, 5, 8], list(range(9))):
        parts = [slice(start, end) for start, end in pairwise(cuts)]
        tallies = [amber.tally(questions[part], amber.verdicts(questions[part], said[part])) for part in parts]
        assert torch.equal(torch.stack(tallies).sum(0), whole)


def test_without_answers_there_are_no_figures_but_a_count(data):
    amber = AMBER(folder=data, images=None)
    assert amber.report(amber.tally([], [])) == {"n": 0.0}


def test_empty_descriptions_are_counted_and_invent_nothing(data):
    metrics = scored(AMBER(folder=data, images=None), replies(["", " ", *ANSWERS[2:]]))
    assert metrics["generative/n_empty"] == 2
    assert metrics["generative/chair"] == metrics["generative/cover"] == metrics["generative/words"] == 0


def test_a_query_of_one_dimension_gives_its_figures_alone_and_no_score(tmp_path):
    folder = write(tmp_path, queries=QUERIES[2:3], query="discriminative-existence")
    metrics = scored(AMBER(folder=folder, images=None, query="discriminative-existence"), replies(["No"]))
    assert {key.partition("/")[0] for key in metrics} == {"discriminative", "existence", "n", "n_unparsed"}


def test_about_names_the_parser_and_what_finds_the_nouns_of_the_parts_that_are_asked(tmp_path):
    write(tmp_path, queries=QUERIES[:2], query="generative")
    write(tmp_path, queries=QUERIES[2:], query="discriminative")
    assert set(AMBER(folder=tmp_path, images=None, query="generative").about()) == {"nouns", "similarity", "rates"}
    assert set(AMBER(folder=tmp_path, images=None, query="discriminative").about()) == {"parser", "rates"}


def test_the_suffix_follows_yes_no_questions_alone(data):
    texts = [question.text for question in AMBER(folder=data, images=None, suffix=" One word.").questions()]
    assert texts[1:3] == ["Question 2?", "Question 3? One word."]


def test_a_subset_keeps_all_questions_of_an_image(data):
    questions = AMBER(folder=data, images=None, num_images=1, seed=3).questions()
    assert len({question.image for question in questions}) == 1
    assert len(questions) == 4


def test_images_are_found_in_their_folder_and_missed_there(data, tmp_path):
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert AMBER(folder=data, images=tmp_path).questions()[1].image == tmp_path / "2.jpg"
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(ValueError, match=r"query_all.json, item 2: no image '2.jpg'"):
        AMBER(folder=data, images=tmp_path).questions()


def test_our_own_samples_are_read_back(data, tmp_path):
    amber = AMBER(folder=data, images=None)
    questions, said = amber.questions(), replies(ANSWERS)
    rows = sample_rows(questions, said, amber.verdicts(questions, said))
    (tmp_path / "amber.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert amber.replies_in(tmp_path / "amber.jsonl") == said


def test_answers_must_match_the_questions_one_to_one(data, tmp_path):
    amber = AMBER(folder=data, images=None)
    file = tmp_path / "answers.json"
    file.write_text(json.dumps([{"id": number, "response": "Yes"} for number in range(1, 8)]))
    with pytest.raises(ValueError, match="1 of 8 questions have no answer"):
        amber.replies_in(file)
    file.write_text(json.dumps([{"id": number, "response": "Yes"} for number in range(1, 10)]))
    with pytest.raises(ValueError, match="1 answers belong to no question"):
        amber.replies_in(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": [*QUERIES, QUERIES[0]]}, "item 9: id 1 stands twice"),
        ({"queries": [{**QUERIES[0], "id": 99}]}, "id 99 is not in"),
        ({"queries": [{**QUERIES[0], "id": "1"}]}, "'id' must be a number"),
        ({"queries": []}, "no questions"),
        ({"annotations": [*ANNOTATIONS, ANNOTATIONS[0]]}, "item 9: id 1 stands twice"),
        ({"annotations": [{"id": 1, "type": "odd", "truth": "no"}]}, "'type' must be one of"),
        ({"annotations": [{"id": 1, "type": [], "truth": "no"}]}, "'type' must be one of"),
        ({"annotations": [{"id": 1, "type": "relation", "truth": "No"}]}, "'truth' must be 'yes' or 'no'"),
        ({"annotations": [{"id": 1, "type": "generative", "truth": ["dog"]}]}, "must be lists of objects"),
        ({"related": {key: [] for key in RELATED if key != "dog"}}, "no 'dog', which annotation 1 names"),
        ({"related": ["dog"]}, "a list of words for every word"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        AMBER(folder=write(tmp_path, **change), images=None).questions()


@pytest.mark.parametrize("name", ["query/query_all.json", "annotations.json", "relation.json", "safe_words.txt"])
def test_a_missing_file_says_which_folder_is_wanted(data, name):
    (data / name).unlink()
    with pytest.raises(ValueError, match=rf"no such file: .*{name}; the folder must be the `data`"):
        AMBER(folder=data, images=None).questions()


def test_safe_words_that_are_no_text_are_named(data):
    (data / "safe_words.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"safe_words\.txt: not UTF-8 text at byte 0"):
        AMBER(folder=data, images=None).questions()


def test_every_metric_has_a_legend_and_the_headlines_are_the_published_columns(data):
    amber = AMBER(folder=data, images=None)
    metrics = scored(amber, replies(ANSWERS))
    shown = [key for key, _ in headlines(amber, metrics)]
    assert shown == [
        "score",
        *(f"generative/{key}" for key in ("chair", "cover", "hal", "cog", "words")),
        *(f"discriminative/{key}" for key in ("accuracy", "precision", "recall", "f1")),
        "n_unparsed",
    ]
    legends = legend_of(amber, metrics)
    assert all(legends[key].better is not None for key in metrics if not key.endswith(("/n", "/words")) and key != "n")
    assert legends["generative/cog"].better == legends["generative/hal"].better == "low"
