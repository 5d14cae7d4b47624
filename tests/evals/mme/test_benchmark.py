import json
from itertools import pairwise

import pytest
import torch
from PIL import Image

from synthalign.evals.legend import headlines, legend_of
from synthalign.evals.mme.benchmark import MME, parse_answer
from synthalign.evals.samples import sample_rows
from synthalign.types import Reply

ASK = " Please answer yes or no."
EXISTENCE = [
    ("1.jpg", f"Is there a dog?{ASK}", "Yes"),
    ("1.jpg", f"Is there a cup?{ASK}", "No"),
    ("2.jpg", f"Is there a dog?{ASK}", "Yes"),
    ("2.jpg", f"Is there a cup?{ASK}", "No"),
    ("3.jpg", f"Is there a car?{ASK}", "Yes"),
    ("3.jpg", f"Is there a sky?{ASK}", "No"),
]
COLOR = [("1.jpg", f"Is the dog red?{ASK}", "Yes"), ("1.jpg", f"Is the dog blue?{ASK}", "No")]
ROWS = {"existence": EXISTENCE, "color": COLOR}
TASKS = ("existence", "color")
ANSWERS = ["Yes, it is.", "no", "Yes", "yes", "The car", "No.", "no", "No"]
# existence: 4 of 6 right, both of 1 of 3 images, one reply unparsed; color: 1 of 2 right, no image
EXISTENCE_SCORE = 100 * 4 / 6 + 100 * 1 / 3
COLOR_SCORE = 50.0


def write(folder, rows=ROWS, answers=None):
    """Write the evaluation tool's form; a fourth column holds the answers."""
    folder.mkdir(parents=True, exist_ok=True)
    rest = iter(answers or [])
    for task, lines in rows.items():
        columns = [[*line, next(rest)] if answers else list(line) for line in lines]
        (folder / f"{task}.txt").write_text("".join("\t".join(line) + "\n" for line in columns))
    return folder


def replies(texts):
    return [Reply(text, False, None) for text in texts]


def scored(mme, said):
    questions = mme.questions()
    return mme.report(mme.tally(questions, mme.verdicts(questions, said)))


@pytest.fixture
def mme(tmp_path):
    return MME(folder=write(tmp_path / "questions"), images=None, tasks=TASKS)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Yes", "yes"),
        ("yes, there is", "yes"),
        ("NO!", "no"),
        ("not at all", "no"),
        ("know", "no"),
        ("None", "no"),
        (" yes", "yes"),
        ("a no", "no"),
        ("noyes", "no"),
        ("nyes", "yes"),
        ("  yes", "other"),  # cut to `  ye`
        ("I see no dog", "other"),
        ("There is", "other"),
        ("", "other"),
    ],
)
def test_only_the_first_four_characters_are_read_and_yes_goes_before_no(reply, answer):
    assert parse_answer(reply) == answer


def test_scores_by_hand(mme):
    assert scored(mme, replies(ANSWERS)) == {
        "score": pytest.approx(EXISTENCE_SCORE + COLOR_SCORE),
        "n": 8,
        "n_unparsed": 1,
        "existence/score": pytest.approx(EXISTENCE_SCORE),
        "existence/accuracy": 4 / 6,
        "existence/accuracy_plus": 1 / 3,
        "existence/n": 6,
        "existence/n_unparsed": 1,
        "color/score": COLOR_SCORE,
        "color/accuracy": 0.5,
        "color/accuracy_plus": 0,
        "color/n": 2,
        "color/n_unparsed": 0,
    }


def test_all_right_is_200_points_a_task(mme):
    assert scored(mme, replies([question.truth for question in mme.questions()]))["score"] == 400


def test_tallies_of_parts_add_up_even_where_they_part_an_image(mme):
    questions, said = mme.questions(), replies(ANSWERS)
    whole = mme.tally(questions, mme.verdicts(questions, said))
    for cuts in ([0, 1, 8], [0, 3, 3, 5, 8], list(range(9))):
        parts = [slice(start, end) for start, end in pairwise(cuts)]
        tallies = [mme.tally(questions[part], mme.verdicts(questions[part], said[part])) for part in parts]
        assert torch.equal(torch.stack(tallies).sum(0), whole)


def test_without_answers_all_is_zero(mme):
    assert set(mme.report(mme.tally([], [])).values()) == {0.0}


def test_a_subset_has_both_questions_of_an_image_and_counts_its_images_alone(tmp_path):
    mme = MME(folder=write(tmp_path), images=None, tasks=TASKS, num_images=2, seed=0)
    assert len({(question.kind, question.image) for question in mme.questions()}) == 2
    assert scored(mme, replies([question.truth for question in mme.questions()]))["n"] == 4


@pytest.mark.parametrize("texts_apart", [False, True])
def test_the_release_is_read_with_its_images(tmp_path, texts_apart):
    for task, lines in ROWS.items():
        texts = tmp_path / task / "questions_answers_YN" if texts_apart else tmp_path / task
        pictures = tmp_path / task / "images" if texts_apart else tmp_path / task
        for folder in (texts, pictures):
            folder.mkdir(parents=True, exist_ok=True)
        for name, text, truth in lines:
            Image.new("RGB", (4, 4)).save(pictures / name)
            with (texts / f"{name.removesuffix('.jpg')}.txt").open("a") as file:
                file.write(f"{text}\t{truth}\n")
    mme = MME(folder=tmp_path, images=tmp_path, tasks=TASKS)
    assert [question.text for question in mme.questions()] == [text for _, text, _ in EXISTENCE + COLOR]
    assert all(question.image.is_file() for question in mme.questions())
    assert scored(mme, replies(ANSWERS))["score"] == pytest.approx(EXISTENCE_SCORE + COLOR_SCORE)


def test_answer_files_of_the_evaluation_tool_are_matched_by_question_whatever_their_order_and_blanks(mme, tmp_path):
    folder = write(tmp_path / "answers", answers=ANSWERS)
    lines = (folder / "existence.txt").read_text().splitlines(keepends=True)
    (folder / "existence.txt").write_text("".join(reversed(lines)).replace(" Please", "  Please"))
    (folder / "posters.txt").write_text("left\talone")
    assert [reply.text for reply in mme.replies_in(folder)] == ANSWERS


def test_one_task_may_be_answered_in_one_file(tmp_path):
    mme = MME(folder=write(tmp_path / "questions"), images=None, tasks=("color",))
    folder = write(tmp_path / "answers", {"color": COLOR}, ["yes", "no"])
    assert scored(mme, mme.replies_in(folder / "color.txt"))["color/score"] == 200


def test_one_file_for_several_tasks_is_refused(mme, tmp_path):
    folder = write(tmp_path / "answers", answers=ANSWERS)
    with pytest.raises(ValueError, match="one file holds one task"):
        mme.replies_in(folder / "color.txt")


def test_our_own_samples_are_read_back(mme, tmp_path):
    questions, said = mme.questions(), replies(ANSWERS)
    rows = sample_rows(questions, said, mme.verdicts(questions, said))
    (tmp_path / "mme.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert mme.replies_in(tmp_path / "mme.jsonl") == said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1.jpg\tIs the dog green?\tYes\tyes", "1 answers belong to no question"),
        (f"1.jpg\tIs the dog red?{ASK}\tNo\tyes", "the truth is 'No', but 'yes' among the questions"),
        (f"1.jpg\tIs the dog red?{ASK}\tYes", "expected 4 columns between tabs, found 3"),
        (f"1.jpg\tIs the dog red?{ASK}\tYes\tyes\tno", "expected 4 columns between tabs, found 5"),
        (f"1.jpg\tIs the dog red?{ASK}\tYes\tyes\n" * 2, "a second answer to 'color/1.jpg/1'"),
        ("", "2 of 8 questions have no answer"),
    ],
)
def test_answer_files_that_do_not_fit_the_questions_are_refused(mme, tmp_path, line, message):
    folder = write(tmp_path / "answers", answers=ANSWERS)
    (folder / "color.txt").write_text(line)
    with pytest.raises(ValueError, match=message):
        mme.replies_in(folder)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (COLOR[:1], "1 questions of 'color' about 1.jpg; there must be 2"),
        ([*COLOR, ("1.jpg", "Is it?", "No")], "3 questions of 'color' about 1.jpg"),
        ([COLOR[0], COLOR[0]], "line 2: a second time the question 'Is the dog red"),
        ([(*COLOR[0][:2], "Maybe"), COLOR[1]], "line 1: the truth must be Yes or No, found 'Maybe'"),
        ([COLOR[0][:2]], "line 1: expected 3 columns between tabs, found 2"),
        ([], "no questions of the task 'color'"),
    ],
)
def test_question_files_that_are_not_as_they_should_be_are_named(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        MME(folder=write(tmp_path, {"color": lines}), images=None, tasks=("color",)).questions()


def test_a_missing_task_a_missing_image_and_odd_tasks_are_errors(tmp_path):
    folder = write(tmp_path / "questions")
    with pytest.raises(ValueError, match=r"neither count.txt nor a folder count"):
        MME(folder=folder, images=None).questions()
    with pytest.raises(ValueError, match=r"existence.txt, line 1: no image '1.jpg'"):
        MME(folder=folder, images=tmp_path, tasks=TASKS).questions()
    with pytest.raises(ValueError, match="at least one task, each once"):
        MME(folder=folder, images=None, tasks=("color", "color"))


def test_every_metric_has_a_legend_and_the_headlines_are_the_scores(mme):
    metrics = scored(mme, replies(ANSWERS))
    assert [key for key, _ in headlines(mme, metrics)] == ["score", "existence/score", "color/score", "n_unparsed"]
    legends = legend_of(mme, metrics)
    assert all(legends[key].better is not None for key in metrics if not key.endswith("/n") and key != "n")
