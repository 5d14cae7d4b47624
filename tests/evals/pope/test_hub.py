import io

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pope_questions import judged

from synthalign.evals.pope import POPE


def encoded(shade, kind="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(stream, kind)
    return stream.getvalue()


RED, BLUE = encoded(10), encoded(200, "JPEG")


def row(number="1", category="adversarial", image=RED, source="COCO_1", answer="yes", question="Is there a cup?"):
    return {
        "id": "0",
        "question_id": number,
        "question": question,
        "answer": answer,
        "image_source": source,
        "image": {"bytes": image, "path": None},
        "category": category,
    }


ROWS = [
    row("1"),
    row("2", answer="no", question="Is there a dog?"),
    row("3", image=BLUE, source="COCO_2.jpg"),
    row("1", category="popular", answer="no"),
]


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def dataset(tmp_path):
    return str(table(tmp_path / "pope.parquet", ROWS))


def test_splits_are_the_categories_and_images_are_written_with_their_bytes_unchanged(dataset, tmp_path):
    pope = POPE(dataset=dataset, images=tmp_path / "images")
    questions = pope.questions()
    assert pope.splits == ("adversarial", "popular")
    assert [question.id for question in questions] == ["adversarial/1", "adversarial/2", "adversarial/3", "popular/1"]
    assert [question.truth for question in questions] == ["yes", "no", "yes", "no"]
    assert questions[1].text == "Is there a dog?" + pope.suffix
    assert [question.image.name for question in questions] == ["COCO_1.png", "COCO_1.png", "COCO_2.jpg", "COCO_1.png"]
    assert (questions[0].image.read_bytes(), questions[2].image.read_bytes()) == (RED, BLUE)
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"COCO_1.png", "COCO_2.jpg"}


def test_figures_of_a_dataset_are_those_of_its_splits(dataset, tmp_path):
    report = judged(POPE(dataset=dataset, images=tmp_path / "images"), ["Yes", "Yes", "No", "No"])
    assert (report["adversarial/accuracy"], report["popular/accuracy"]) == (1 / 3, 1)
    assert report["mean/accuracy"] == pytest.approx(2 / 3)


def test_images_that_are_there_already_stay_and_another_one_of_the_name_is_an_error(dataset, tmp_path):
    first = POPE(dataset=dataset, images=tmp_path / "images").questions()[0].image
    written = first.stat().st_mtime_ns
    POPE(dataset=dataset, images=tmp_path / "images").questions()
    assert first.stat().st_mtime_ns == written
    first.write_bytes(BLUE)
    with pytest.raises(ValueError, match=r"row 0: .*COCO_1\.png is another image already; give the dataset a folder"):
        POPE(dataset=dataset, images=tmp_path / "images").questions()


def test_of_some_images_the_same_are_drawn_with_a_folder_and_without_and_no_others_are_written(tmp_path):
    rows = [row(str(at), source=name, image=encoded(at)) for at, name in enumerate(["a", "a-1", "a-2", "b", "b-1"])]
    dataset = str(table(tmp_path / "pope.parquet", rows))  # where a.png comes after a-1.png, and a before
    for seed in range(4):
        folder = tmp_path / str(seed)
        asked = POPE(dataset=dataset, images=folder, num_images=2, seed=seed).questions()
        alone = POPE(dataset=dataset, images=None, num_images=2, seed=seed).questions()
        assert [one.id for one in asked] == [one.id for one in alone]
        assert {path.name for path in folder.iterdir()} == {question.image.name for question in asked}


def test_saved_answers_need_no_images_and_are_matched_by_split_and_id(dataset, tmp_path):
    pope = POPE(dataset=dataset, images=None)
    file = tmp_path / "pope.jsonl"
    lines = [f'{{"id": "{question.id}", "image": "COCO_{1 + (number == 2)}.png", "reply": "No"}}\n'
             for number, question in enumerate(pope.questions())]  # fmt: skip
    file.write_text("".join(lines))
    assert [reply.text for reply in pope.replies_in(dict.fromkeys(pope.splits, file))] == ["No"] * 4


@pytest.mark.parametrize("folder", ["", "data"])
def test_a_folder_is_read_shard_after_shard_and_test_before_other_splits(tmp_path, folder):
    table(tmp_path / "set" / folder / "test-00001-of-00002.parquet", ROWS[2:])
    table(tmp_path / "set" / folder / "test-00000-of-00002.parquet", ROWS[:2])
    table(tmp_path / "set" / folder / "train-00000-of-00001.parquet", ROWS)
    table(tmp_path / "set" / "Full" / "popular-00000-of-00001.parquet", ROWS[3:])
    questions = POPE(dataset=str(tmp_path / "set"), images=None).questions()
    assert [question.id for question in questions] == ["adversarial/1", "adversarial/2", "adversarial/3", "popular/1"]


def test_files_named_by_split_are_read_together(tmp_path):
    table(tmp_path / "Full" / "adversarial-00000-of-00001.parquet", ROWS[:3])
    table(tmp_path / "Full" / "popular-00000-of-00001.parquet", ROWS[3:])
    assert len(POPE(dataset=str(tmp_path / "Full"), images=None).questions()) == 4


def test_a_missing_shard_is_an_error_and_not_a_smaller_benchmark(tmp_path):
    table(tmp_path / "set" / "test-00000-of-00002.parquet", ROWS)
    with pytest.raises(ValueError, match="1 of 2 shards are there"):
        POPE(dataset=str(tmp_path / "set"), images=None).questions()


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([ROWS[0], row("2", image=BLUE)], "row 1: another image than before goes by the name 'COCO_1'"),
        ([ROWS[0], row("1", question="Again?")], r"row 1: question_id '1' stands twice in the split 'adversarial'"),
        ([row(answer="maybe")], "row 0: 'answer' must be yes or no, found 'maybe'"),
        ([row(answer=None), ROWS[0]], "row 0: column 'answer' is empty"),
        ([row("9", image=None), ROWS[0]], "row 0: there is no image in column 'image'"),
        ([row(image=b"text")], "image cannot be read: .*row 0"),
        ([row(source="../COCO_1")], r"row 0: image_source '\.\./COCO_1' cannot name a file"),
        ([row(category="a/b")], "split 'a/b' cannot be part of a metric's name"),
        ([{"question": "Is there a cup?"}], "no column 'question_id', 'answer', 'image_source', 'category' among"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(tmp_path, rows, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        POPE(dataset=str(table(tmp_path / "pope.parquet", rows)), images=tmp_path / "images").questions()
    assert "\n" not in str(caught.value)


def test_what_is_no_table_is_one_line(tmp_path):
    (tmp_path / "pope.parquet").write_bytes(b"text")
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), tmp_path / "none.parquet")
    for name, complaint in {
        "pope.parquet": "cannot be read as parquet",
        "empty": "no parquet files at its top or in its folder 'data'",
        "none.parquet": "holds no questions",
        "absent/one/two": "no such file or folder",
    }.items():
        with pytest.raises(ValueError, match=complaint) as caught:
            POPE(dataset=str(tmp_path / name), images=None).questions()
        assert "\n" not in str(caught.value)


def test_without_the_hub_a_name_that_is_no_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"^me/pope: there is no such file or folder, and as a dataset of the hub"):
        POPE(dataset="me/pope", images=None).questions()
