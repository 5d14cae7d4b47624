import json

import pytest

from synthalign.evals.captions import Captions
from synthalign.types import Reply

OBJECTS = "cup, mug\ndog, puppy\nhot dog\ntraffic light, stop light\ntable\n"


def row(number=1, image="010.png", objects=("cup", "table")):
    return {"id": f"c{number}", "image": image, "question": "Describe the image.", "objects": list(objects)}


def captions(tmp_path, images, rows, objects=OBJECTS):
    (tmp_path / "objects.txt").write_text(objects)
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return Captions(file=tmp_path / "captions.jsonl", images=images, objects=tmp_path / "objects.txt")


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
        ("", []),
    ],
)
def test_mentions_are_whole_listed_words_by_their_objects_name(tmp_path, images, caption, names):
    assert captions(tmp_path, images, [row()]).mentions(caption) == names


def test_metrics_by_hand(tmp_path, images):
    rows = [row(1, objects=["cup", "table"]), row(2, objects=["dog"]), row(3, objects=["hot dog", "mug"])]
    texts = ["A cup and a mug and a dog.", "A puppy.", ""]
    assert report(captions(tmp_path, images, rows), texts) == {
        "chair_i": 1 / 4,  # mentions: cup, cup, dog (not there), dog
        "chair_s": 1 / 3,
        "coverage": 2 / 5,  # the cup, once, and the dog, of five objects
        "words": pytest.approx((8 + 2 + 0) / 3),
        "n": 3,
        "n_empty": 1,
    }


def test_nothing_said_divides_by_nothing(tmp_path, images):
    metrics = report(captions(tmp_path, images, [row()]), ["   "])
    assert (metrics["chair_i"], metrics["chair_s"], metrics["coverage"], metrics["n_empty"]) == (0, 0, 0, 1)


def test_verdicts_list_what_was_mentioned_and_what_was_invented(tmp_path, images):
    evaluation = captions(tmp_path, images, [row(objects=["mug"])])
    (verdict,) = evaluation.verdicts(evaluation.questions(), [Reply("A dog, a cup, a dog")])
    assert verdict == {"correct": False, "mentioned": ["dog", "cup", "dog"], "invented": ["dog", "dog"], "words": 6}


def test_truth_is_by_the_objects_names_each_once(tmp_path, images):
    evaluation = captions(tmp_path, images, [row(objects=["Mug", "cup", "stop light"])])
    assert evaluation.questions()[0].truth == ["cup", "traffic light"]


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ({"id": "c1"}, "id 'c1' stands twice"),
        ({"objects": ["unicorn"]}, "object 'unicorn' is not in"),
        ({"objects": "cup"}, "'objects' must be a list of names, found 'cup'"),
        ({"question": None}, "'question' must be text, found None"),
        ({"image": "../secret.png"}, "leads out of its folder"),
        ({"image": "absent.png"}, "no image 'absent.png'"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_value(tmp_path, images, second, complaint):
    with pytest.raises(ValueError) as caught:
        captions(tmp_path, images, [row(1), row(2) | second]).questions()
    assert "captions.jsonl, line 2: " in str(caught.value) and complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_word_cannot_stand_for_two_objects(tmp_path, images):
    evaluation = captions(tmp_path, images, [row()], objects="cup, mug\n\nglass, Mug\n")
    with pytest.raises(ValueError, match=r"objects\.txt, line 3: 'mug' already stands for 'cup'"):
        evaluation.questions()


def test_a_word_may_stand_twice_in_its_own_line(tmp_path, images):
    evaluation = captions(tmp_path, images, [row()], objects="cup, mug, cup\ntable\n")
    assert evaluation.mentions("mug") == ["cup"]


def test_no_objects_and_no_questions_are_errors(tmp_path, images):
    with pytest.raises(ValueError, match=r"objects\.txt: no objects"):
        captions(tmp_path, images, [row()], objects="\n , \n").questions()
    with pytest.raises(ValueError, match=r"captions\.jsonl: no questions"):
        captions(tmp_path, images, []).questions()
