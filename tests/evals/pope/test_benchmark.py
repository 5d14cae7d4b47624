import json
import random

import pytest
from pope_questions import judged, row, write

from synthalign.evals.legend import legend_of
from synthalign.evals.pope import POPE

SAYS_NO = {  # as the official script reads it, by hand
    "Yes": False,
    "No": True,
    "no, none": True,
    "It is not.": True,
    " no": True,
    "": False,
    "maybe": False,
    "NO": False,
    "No!": False,
    "No\n": False,
    "Yes. No.": False,
    "yes,no": False,
    "\u00a0no": False,
}


def test_report_agrees_with_an_independent_count(tmp_path, images):
    rng = random.Random(0)
    labels = [rng.choice(["yes", "no"]) for _ in range(60)]
    texts = [rng.choice(list(SAYS_NO)) for _ in labels]
    file = write(tmp_path / "a.jsonl", [row(number, label=label) for number, label in enumerate(labels)])
    report = judged(POPE(files={"random": file}, images=images), texts)

    said_no = [SAYS_NO[text] for text in texts]
    right = sum((label == "no") == no for label, no in zip(labels, said_no, strict=True))
    said_yes = [label for label, no in zip(labels, said_no, strict=True) if not no]
    precision, recall = said_yes.count("yes") / len(said_yes), said_yes.count("yes") / labels.count("yes")
    assert report["random/accuracy"] == pytest.approx(right / 60)
    assert report["random/precision"] == pytest.approx(precision)
    assert report["random/recall"] == pytest.approx(recall)
    assert report["random/f1"] == pytest.approx(2 / (1 / precision + 1 / recall))
    assert report["random/yes_ratio"] == pytest.approx(len(said_yes) / 60)
    assert report["random/n"] == 60
    assert report["random/n_unparsed"] == sum(
        text in ("", "maybe", "It is not.", "Yes. No.", "yes,no") for text in texts
    )


def test_means_are_over_splits_however_large_they_are(tmp_path, images):
    one = write(tmp_path / "one.json", [row(1)])
    three = write(tmp_path / "three.json", [row(1), row(2, label="no"), row(3, label="no")])
    report = judged(POPE(files={"small": one, "large": three}, images=images), ["Yes", "Yes", "Yes", "No"])
    assert report["small/accuracy"] == 1 and report["large/accuracy"] == pytest.approx(2 / 3)
    assert report["mean/accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    assert report["mean/yes_ratio"] == pytest.approx((1 + 2 / 3) / 2)
    assert (report["n"], report["n_unparsed"]) == (4, 0)


def test_auc_counts_pairs_of_margins_whatever_the_replies_say(tmp_path, images):
    rows = [row(1), row(2), row(3, label="no"), row(4, label="no")]
    pope = POPE(files={"random": write(tmp_path / "a.json", rows)}, images=images)
    report = judged(pope, ["No"] * 4, margins=[2.0, 0.5, 1.0, -3.0])
    assert report["random/auc"] == 3 / 4  # of the four pairs only 0.5 against 1.0 is lost
    assert report["mean/auc"] == 3 / 4


@pytest.mark.parametrize("margins", [[None, None], [1.0, None]])
def test_auc_is_absent_unless_every_reply_shows_its_margin(tmp_path, images, margins):
    pope = POPE(files={"random": write(tmp_path / "a.json", [row(1), row(2, label="no")])}, images=images)
    assert not [key for key in judged(pope, ["Yes", "No"], margins) if key.endswith("auc")]


def test_a_margin_that_is_no_number_is_an_error(tmp_path, images):
    pope = POPE(files={"random": write(tmp_path / "a.json", [row()])}, images=images)
    with pytest.raises(ValueError, match="random/1 is nan"):
        judged(pope, ["Yes"], [float("nan")])


def test_json_lines_and_an_indented_array_give_the_same_questions(tmp_path, images):
    rows = [row(1), row(2, label="no")]
    lines = write(tmp_path / "lines.json", rows)
    array = tmp_path / "array.json"
    array.write_text(json.dumps(rows, indent=4))
    assert (
        POPE(files={"random": lines}, images=images).questions()
        == POPE(files={"random": array}, images=images).questions()
    )


def test_ids_carry_the_split_since_numbers_begin_again_in_each(tmp_path, images):
    file = write(tmp_path / "a.json", [row(1)])
    questions = POPE(files={"random": file, "popular": file}, images=images, suffix="\nBriefly.").questions()
    assert [question.id for question in questions] == ["random/1", "popular/1"]
    assert [question.kind for question in questions] == ["random", "popular"]
    assert questions[0].text == "Is there a cup?\nBriefly."
    assert questions[0].image == images / "010.png"


def test_the_default_suffix_is_that_of_llava(tmp_path, images):
    (question,) = POPE(files={"random": write(tmp_path / "a.json", [row()])}, images=images).questions()
    assert question.text == "Is there a cup?\nAnswer the question using a single word or phrase."


def test_a_subset_draws_whole_images_across_splits_by_seed(tmp_path, images):
    names = [f"{shade:03d}.png" for shade in range(10, 90, 10)]
    rows = [row(number, image=name) for number, name in enumerate(names * 3)]
    files = {split: write(tmp_path / f"{split}.json", rows) for split in ("random", "popular")}

    def drawn(seed):
        questions = POPE(files=files, images=images, num_images=3, seed=seed).questions()
        assert len(questions) == 3 * 3 * 2  # three images, thrice in each of two splits
        return [question.image.name for question in questions]

    assert len(set(drawn(0))) == 3
    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(5)}) > 1
    whole = [question.id for question in POPE(files=files, images=images).questions()]
    part = [question.id for question in POPE(files=files, images=images, num_images=3).questions()]
    assert part == [question_id for question_id in whole if question_id in set(part)]


def test_a_split_left_without_questions_shows_n_0_and_stays_out_of_the_mean(tmp_path, images):
    files = {
        "random": write(tmp_path / "a.json", [row(image="010.png")]),
        "popular": write(tmp_path / "b.json", [row(image="020.png")]),
    }
    pope = POPE(files=files, images=images, num_images=1)
    (question,) = pope.questions()
    report = judged(pope, ["Yes"])
    (empty,) = {"random", "popular"} - {question.kind}
    assert report[f"{empty}/n"] == 0 and report[f"{empty}/accuracy"] == 0
    assert report["mean/accuracy"] == 1


def test_strict_and_exact_figures_stand_beside_the_official_with_counts_of_what_they_cannot_read(tmp_path, images):
    replies = [  # label, reply; read officially, strictly, exactly
        ("yes", "yes"),  # yes, yes, yes
        ("no", ""),  # yes, -, -
        ("no", "No, there is no cup."),  # no, no, -
        ("yes", "NO "),  # yes, no, no
        ("yes", "yes and no?"),  # yes, -, -
    ]
    rows = [row(number, label=label) for number, (label, _) in enumerate(replies)]
    pope = POPE(files={"random": write(tmp_path / "a.json", rows)}, images=images)
    report = judged(pope, [text for _, text in replies])
    assert report["random/accuracy"] == 4 / 5
    assert (report["random/strict_accuracy"], report["random/n_unparsed"]) == (2 / 3, 2)
    assert (report["random/exact_match"], report["random/n_inexact"]) == (1 / 5, 3)
    assert (report["mean/strict_accuracy"], report["n_unparsed"], report["n_inexact"]) == (2 / 3, 2, 3)


def test_where_nothing_can_be_read_strictly_stands_zero(tmp_path, images):
    report = judged(POPE(files={"random": write(tmp_path / "a.json", [row()])}, images=images), ["maybe"])
    assert (report["random/strict_accuracy"], report["random/n_unparsed"], report["random/n"]) == (0, 1, 1)


def test_every_metric_has_a_legend(tmp_path, images):
    pope = POPE(files={"random": write(tmp_path / "a.json", [row(1), row(2, label="no")])}, images=images)
    legends = legend_of(pope, judged(pope, ["Yes", "No"], [1.0, -1.0]))
    assert {legend.pattern for legend in legends.values()} <= {legend.pattern for legend in pope.legend}
    plain = {key.rpartition("/")[2] for key, legend in legends.items() if not legend.percent}
    assert plain == {"n", "n_unparsed", "n_inexact", "auc"}


def test_without_images_a_question_names_its_own(tmp_path):
    (question,) = POPE(files={"random": write(tmp_path / "a.json", [row()])}, images=None).questions()
    assert question.image.as_posix() == "010.png"


def error_of(tmp_path, images, content, **settings):
    file = tmp_path / "questions.json"
    file.write_text(content if isinstance(content, str) else "".join(json.dumps(one) + "\n" for one in content))
    with pytest.raises(ValueError) as caught:
        POPE(**{"files": {"random": file}, "images": images, **settings}).questions()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ({"label": None}, "no 'label'"),
        ({"label": "maybe"}, "found 'maybe'"),
        ({"label": "Yes"}, "found 'Yes'"),
        ({"question_id": 1}, "question_id 1 stands twice"),
        ({"question_id": "1"}, "question_id '1' stands twice"),
        ({"question_id": None}, "'question_id' must be a number or text, found None"),
        ({"text": 7}, "'text' must be text, found 7"),
        ({"image": "../images/010.png/../../secret.png"}, "leads out of its folder"),
        ({"image": "/etc/hosts"}, "image '/etc/hosts' leads out of its folder"),
        ({"image": "absent.png"}, "no image 'absent.png'"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_value(tmp_path, images, second, complaint):
    (tmp_path / "secret.png").write_bytes(b"")
    message = error_of(tmp_path, images, [row(1), row(2) | second])
    assert "questions.json, line 2" in message and complaint in message


def test_a_link_out_of_the_image_folder_is_refused(tmp_path, images):
    (tmp_path / "secret.png").write_bytes(b"")
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    assert "image 'link.png' leads out" in error_of(tmp_path, images, [row(image="link.png")])


def test_malformed_json_is_named_by_its_line(tmp_path, images):
    broken = json.dumps(row(1)) + "\n" + '{"question_id": 2,'
    assert "questions.json, line 2: malformed JSON" in error_of(tmp_path, images, broken)
    assert "questions.json, line 3: malformed JSON" in error_of(tmp_path, images, '[\n{"question_id": 1}\n{}]')


def test_a_file_without_questions_is_an_error(tmp_path, images):
    assert "no questions" in error_of(tmp_path, images, "")


def test_a_file_that_is_not_there_is_an_error(tmp_path, images):
    with pytest.raises(ValueError, match=r"no such file: .*absent\.json"):
        POPE(files={"random": tmp_path / "absent.json"}, images=images).questions()


def test_a_subset_of_more_images_than_there_are_is_an_error(tmp_path, images):
    assert "num_images=5, but the questions are about 1 images only" in error_of(
        tmp_path, images, [row()], num_images=5
    )


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"files": {}}, "pope: name files, one for each split, or a dataset"),
        ({"files": None}, "pope: name files"),
        ({"dataset": "lmms-lab/POPE"}, "and not both"),
        ({"files": {"a/b": "x"}}, "split 'a/b'"),
        ({"files": {"mean": "x"}}, "split 'mean'"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(tmp_path, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        POPE(**{"files": {"random": tmp_path / "a.json"}, "images": tmp_path, **settings})
