import json
from pathlib import Path

import pytest

from synthalign.evals.chair import CHAIR
from synthalign.evals.chair.words import PlainWords
from synthalign.evals.legend import headlines, legend_of
from synthalign.evals.samples import sample_rows
from synthalign.types import Reply

OBJECTS = "cup, mug\ndog, puppy\nhot dog\ntraffic light, stop light\ntable\n"


def row(number=1, image="010.png", objects=("cup", "table")):
    return {"id": f"c{number}", "image": image, "question": "Describe the image.", "objects": list(objects)}


def chair(tmp_path, images, rows, objects=OBJECTS, **settings):
    (tmp_path / "objects.txt").write_text(objects)
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return CHAIR(file=tmp_path / "truth.jsonl", images=images, synonyms=tmp_path / "objects.txt", **settings)


def report(evaluation, texts):
    questions = evaluation.questions()
    return evaluation.report(evaluation.tally(questions, evaluation.verdicts(questions, [Reply(t) for t in texts])))


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ("A cup on a table.", ["cup", "table"]),
        ("A CUP beside a Mug", ["cup", "cup"]),
        ("A hot dog.", ["hot dog"]),  # and no dog
        ("A hot\n dog, and a dog", ["hot dog", "dog"]),
        ("The stop light is green.", ["traffic light"]),
        ("Two cups, a tablecloth, a cupboard", []),  # whole words, as they stand
        ("cup-table", ["cup", "table"]),
        ("The dog's cup", ["dog", "cup"]),
        ("A puppy, seated", ["dog"]),
        ("", []),
    ],
)
def test_mentions_are_whole_listed_words_by_their_objects_name(tmp_path, images, caption, names):
    assert chair(tmp_path, images, [row()]).mentions(caption) == names


def test_metrics_by_hand(tmp_path, images):
    rows = [row(1, objects=["cup", "table"]), row(2, objects=["dog"]), row(3, objects=["hot dog", "mug"])]
    texts = ["A cup and a mug and a dog.", "A puppy.", ""]
    assert report(chair(tmp_path, images, rows), texts) == {
        "chair_i": 1 / 4,  # mentions: cup, cup, dog (not there), dog
        "chair_s": 1 / 3,
        "coverage": 2 / 5,  # the cup, once, and the dog, of five objects
        "words": pytest.approx((8 + 2 + 0) / 3),
        "mentions": 4 / 3,
        "n": 3,
        "n_empty": 1,
    }


def test_nothing_said_divides_by_nothing(tmp_path, images):
    metrics = report(chair(tmp_path, images, [row()]), ["   "])
    assert (metrics["chair_i"], metrics["chair_s"], metrics["coverage"], metrics["n_empty"]) == (0, 0, 0, 1)


def test_verdicts_list_what_was_mentioned_and_what_was_invented(tmp_path, images):
    evaluation = chair(tmp_path, images, [row(objects=["mug"])])
    (verdict,) = evaluation.verdicts(evaluation.questions(), [Reply("A dog, a cup, a dog")])
    assert verdict == {"correct": False, "mentioned": ["dog", "cup", "dog"], "invented": ["dog", "dog"], "words": 6}


def test_truth_is_by_the_objects_names_each_once(tmp_path, images):
    evaluation = chair(tmp_path, images, [row(objects=["Mug", "cup", "stop light"])])
    assert evaluation.questions()[0].truth == ["cup", "traffic light"]


def test_an_image_and_its_objects_are_enough(tmp_path, images):
    rows = [{"image": "010.png", "objects": []}, {"image": "020.png", "question": "What is here?", "objects": ["cup"]}]
    questions = chair(tmp_path, images, rows, question="Describe.").questions()
    assert [(one.id, one.image, one.text) for one in questions] == [
        ("010.png", images / "010.png", "Describe."),
        ("020.png", images / "020.png", "What is here?"),
    ]


def test_the_variant_stands_in_the_name_and_under_the_figures(tmp_path, images):
    evaluation = chair(tmp_path, images, [row()])
    assert evaluation.name == chair(tmp_path, images, [row()], words=PlainWords()).name == "chair_plain"
    assert evaluation.about() == {"variant": "plain words, no lemmatisation"}
    assert chair(tmp_path, images, [row()], name="captions").name == "captions"


def test_where_the_truth_is_from_stands_under_the_figures_if_the_file_says_so(tmp_path, images):
    rows = [row(1) | {"truth_from": "instances"}, row(2) | {"truth_from": "instances"}]
    assert chair(tmp_path, images, rows).about()["truth"] == "instances"


def test_every_metric_has_a_legend(tmp_path, images):
    evaluation = chair(tmp_path, images, [row()])
    metrics = report(evaluation, ["A cup"])
    assert [key for key, _ in headlines(evaluation, metrics)] == ["chair_i", "chair_s", "coverage", "words", "n_empty"]
    assert legend_of(evaluation, metrics).keys() == metrics.keys()


def test_some_images_only_are_drawn_by_the_seed(tmp_path, images):
    rows = [row(number, image=f"0{number}0.png") for number in range(1, 9)]
    drawn = [
        [one.id for one in chair(tmp_path, images, rows, num_images=3, seed=seed).questions()] for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 3


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ({"id": "c1"}, "id 'c1' stands twice"),
        ({"objects": ["unicorn"]}, "object 'unicorn' is not in"),
        ({"objects": "cup"}, "'objects' must be a list of names, found 'cup'"),
        ({"question": None}, "'question' must be text, found None"),
        ({"id": 7}, "'id' must be text, found 7"),
        ({"image": "../secret.png"}, "leads out of its folder"),
        ({"image": "absent.png"}, "no image 'absent.png'"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_value(tmp_path, images, second, complaint):
    with pytest.raises(ValueError) as caught:
        chair(tmp_path, images, [row(1), row(2) | second]).questions()
    assert "truth.jsonl, line 2: " in str(caught.value) and complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_word_cannot_stand_for_two_objects(tmp_path, images):
    evaluation = chair(tmp_path, images, [row()], objects="cup, mug\n\nglass, Mug\n")
    with pytest.raises(ValueError, match=r"objects\.txt, line 3: 'mug' already stands for 'cup'"):
        evaluation.questions()


def test_a_word_may_stand_twice_in_its_own_line_and_commas_need_no_blanks(tmp_path, images):
    evaluation = chair(tmp_path, images, [row()], objects="cup,mug,  beaker , cup\ntable\n")
    assert evaluation.mentions("a mug and a beaker") == ["cup", "cup"]


def test_no_objects_and_no_questions_are_errors(tmp_path, images):
    with pytest.raises(ValueError, match=r"objects\.txt: no objects"):
        chair(tmp_path, images, [row()], objects="\n , \n").questions()
    with pytest.raises(ValueError, match=r"truth\.jsonl: no questions"):
        chair(tmp_path, images, []).questions()
    with pytest.raises(ValueError, match=r"no such file: .*none\.txt"):
        CHAIR(file=tmp_path / "truth.jsonl", images=images, synonyms=tmp_path / "none.txt").questions()
    (tmp_path / "none.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"none\.txt: not UTF-8 text at byte 0"):
        CHAIR(file=tmp_path / "truth.jsonl", images=images, synonyms=tmp_path / "none.txt").questions()


def test_saved_captions_give_the_figures_without_images(tmp_path, images):
    rows = [row(1), row(2, objects=["dog"])]
    asked = chair(tmp_path, images, rows)
    replies = [Reply("A cup and a dog.", truncated=True), Reply("A puppy.")]
    samples = sample_rows(asked.questions(), replies, asked.verdicts(asked.questions(), replies))
    answers = tmp_path / "chair_plain.jsonl"
    answers.write_text("".join(json.dumps(one) + "\n" for one in reversed(samples)))
    scored = chair(tmp_path, None, rows)
    assert scored.replies_in(answers) == replies
    assert report(scored, [reply.text for reply in replies]) == report(asked, ["A cup and a dog.", "A puppy."])


COCO = ["COCO_val2014_000000000042.jpg", "000000000139.jpg", "kitchen.jpg"]
BY_IMAGE = [{"image_id": number, "caption": f"Of {number}."} for number in (139, 42, "kitchen.jpg")]


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(BY_IMAGE),
        "\n".join(json.dumps(one) for one in BY_IMAGE),
        json.dumps({"overall": {"CIDEr": 1.0}, "imgToEval": {str(one["image_id"]): one for one in BY_IMAGE}}),
        json.dumps({"sentences": BY_IMAGE, "overall_metrics": {}}, indent=1),
    ],
    ids=["array", "lines", "read by the original", "written by the original"],
)
def test_captions_by_coco_number_or_image_name_are_matched_exactly(tmp_path, text):
    evaluation = chair(tmp_path, None, [{"image": image, "objects": []} for image in COCO])
    replies = evaluation.replies_in(written(tmp_path / "captions.json", text))
    assert [reply.text for reply in replies] == ["Of 42.", "Of 139.", "Of kitchen.jpg."]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (BY_IMAGE[:2], "1 of 3 questions have no answer"),
        ([*BY_IMAGE, {"image_id": 1, "caption": ""}], "1 of 4 captions are of no image in"),
        ([*BY_IMAGE, {"image_id": 42, "caption": ""}], "second answer to '42'"),
        ([*BY_IMAGE, {"image_id": COCO[0], "caption": ""}], f"a second caption of '{COCO[0]}'"),
        ([*BY_IMAGE[:2], {"caption": "Of a kitchen."}], "no id"),
        ({"sentences": [*BY_IMAGE, BY_IMAGE[0]]}, "caption 4: a second caption of image 139"),
        ({"sentences": [*BY_IMAGE, {"caption": "?"}]}, "caption 4: no 'image_id'"),
        ({"imgToEval": {"42": {"image_id": 42}}}, "caption 1: 'caption' must be text, found None"),
    ],
)
def test_missing_surplus_foreign_and_repeated_captions_are_errors(tmp_path, rows, complaint):
    evaluation = chair(tmp_path, None, [{"image": image, "objects": []} for image in COCO])
    with pytest.raises(ValueError) as caught:
        evaluation.replies_in(written(tmp_path / "captions.json", json.dumps(rows)))
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_an_image_number_that_may_mean_two_questions_is_an_error(tmp_path):
    rows = [{"id": which, "image": COCO[0], "objects": []} for which in "ab"]
    answers = written(tmp_path / "captions.json", json.dumps(BY_IMAGE[1:2]))
    with pytest.raises(ValueError, match="image_id 42 may mean any of a, b; name the question's id"):
        chair(tmp_path, None, rows).replies_in(answers)


def test_an_image_number_is_never_taken_for_a_question_of_that_id(tmp_path):
    evaluation = chair(tmp_path, None, [{"id": "42", "image": "cup.jpg", "objects": []}])
    with pytest.raises(ValueError, match=r"'42'; its images are named as 'cup\.jpg' is"):
        evaluation.replies_in(written(tmp_path / "captions.json", json.dumps(BY_IMAGE[1:2])))


@pytest.mark.parametrize("key", ["image", "image_id"])
@pytest.mark.parametrize("names", [("a.jpg", "b.png"), ("a", "b"), ("val/a.jpg", "b")])
def test_captions_by_image_name_with_its_suffix_or_without(tmp_path, key, names):
    evaluation = chair(tmp_path, None, [{"image": image, "objects": []} for image in ("val/a.jpg", "test/b.png")])
    rows = [{key: name, "caption": f"Of {name}."} for name in names]
    replies = evaluation.replies_in(written(tmp_path / "captions.json", json.dumps(rows)))
    assert [reply.text for reply in replies] == [f"Of {name}." for name in names]


@pytest.mark.parametrize("images", [("a.jpg", "a.png"), ("x/a.jpg", "y/a.jpg")])
def test_a_name_that_fits_two_images_is_an_error_that_names_both(tmp_path, images):
    answers = written(tmp_path / "captions.json", '[{"image": "a", "caption": "A cup."}]')
    with pytest.raises(ValueError, match=f"image_id a may mean any of {', '.join(images)}; name the question's id"):
        chair(tmp_path, None, [{"image": image, "objects": []} for image in images]).replies_in(answers)


def test_a_whole_name_is_never_taken_for_another_without_its_suffix(tmp_path):
    evaluation = chair(tmp_path, None, [{"image": image, "objects": []} for image in ("a", "a.jpg")])
    rows = [{"image": name, "caption": name} for name in ("a.jpg", "a")]
    replies = evaluation.replies_in(written(tmp_path / "captions.json", json.dumps(rows)))
    assert [reply.text for reply in replies] == ["a", "a.jpg"]
