"""Pairs in every format known; a mistake in them is one line that says where."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import (
    BLUE,
    READ,
    RED,
    TWO,
    authors,
    kept,
    our_pair,
    png,
    the_line,
    trl,
    write_images,
    write_json,
    write_lines,
    write_shard,
)
from PIL import Image

from synthalign.tables import PairRow, read_pairs
from synthalign.types import Drop

# Formats


@pytest.mark.parametrize("write", [write_json, write_lines])
def test_the_authors_rows_are_read_from_json_and_from_lines(write, tmp_path):
    folder = write_images(tmp_path)
    pairs = read_pairs(write(folder / "pairs.json", [authors(*row) for row in TWO]))
    assert pairs.rows == READ
    assert pairs.dropped == []
    assert [image.getpixel((0, 0)) for image in pairs.images] == [RED, BLUE]
    assert [pairs.images.size(n) for n in range(2)] == [(5, 4), (7, 3)]


def test_the_image_folder_may_be_elsewhere(tmp_path):
    folder = write_images(tmp_path / "elsewhere")
    path = write_json(tmp_path / "pairs.json", [authors(*TWO[0])])
    assert read_pairs(path, folder).images[0].size == (5, 4)
    assert "no image 'images/red.png' in" in the_line(path)


def test_conversational_rows_are_read_from_json_with_paths(tmp_path):
    folder = write_images(tmp_path)
    rows = [trl(*row[2:], id=row[0], images=[f"images/{row[1]}"]) for row in TWO]
    pairs = read_pairs(write_lines(folder / "pairs.jsonl", rows))
    assert pairs.rows == READ
    assert pairs.images[1].size == (7, 3)


def test_a_conversation_may_come_without_a_prompt_of_its_own(tmp_path):
    folder = write_images(tmp_path)
    row = trl("Why?", "So.", "No.", image="images/red.png")
    asked = row.pop("prompt")
    row |= {side: asked + row[side] for side in ("chosen", "rejected")}
    assert read_pairs(write_json(folder / "pairs.json", [row])).rows == [
        PairRow("1", "images/red.png", "Why?", "So.", "No.")
    ]


@pytest.mark.parametrize("column", ["images", "image"])
def test_conversational_rows_are_read_from_parquet_with_embedded_images(column, tmp_path):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature
    from datasets import List as ListFeature

    part = {"type": Value("string"), "text": Value("string")}
    turn = ListFeature({"role": Value("string"), "content": ListFeature(part)})
    feature = ListFeature(ImageFeature()) if column == "images" else ImageFeature()
    images = [Image.new("RGB", (5, 4), RED), Image.new("L", (7, 3), 99)]
    rows = [
        trl(*row[2:]) | {column: [image] if column == "images" else image}
        for row, image in zip(TWO, images, strict=True)
    ]
    features = Features({"prompt": turn, "chosen": turn, "rejected": turn, column: feature})
    folder = tmp_path / "odd [1] name*"
    folder.mkdir()
    Dataset.from_list(rows, features=features).to_parquet(folder / "train.parquet")
    for path in (folder, folder / "train.parquet"):
        pairs = read_pairs(path)
        assert [row[2:5] for row in pairs.rows] == [row[2:] for row in TWO]
        assert [row.id for row in pairs.rows] == ["0", "1"]
        assert [row.image_id for row in pairs.rows] == [pairs.images.digest(n) for n in range(2)]
        assert [pairs.images.size(n) for n in range(2)] == [(5, 4), (7, 3)]
        assert [image.getpixel((0, 0)) for image in pairs.images] == [RED, (99, 99, 99)]


def test_rlaif_vs_own_rows_are_read_and_pairs_of_one_image_know_it(tmp_path):
    row = {"ds_name": "RLAIF-V", "question": "What?", "chosen": "A.", "rejected": "B.", "origin_dataset": "COCO"}
    row |= {"origin_split": '{"model": "x"}', "image_path": "images/1.jpg"}
    images = [{"bytes": png(color), "path": "1.jpg"} for color in (RED, BLUE, RED)]
    rows = [row | {"idx": idx, "image": image} for idx, image in zip(["7", "", "7"], images, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    pairs = read_pairs(tmp_path / "pairs.parquet")
    assert [row.id for row in pairs.rows] == ["7", "1", "7#2"]
    assert [row[2:5] for row in pairs.rows] == [("What?", "A.", "B.")] * 3
    red, blue, again = (row.image_id for row in pairs.rows)
    assert red == again != blue
    assert pairs.images[1].getpixel((0, 0)) == BLUE


@pytest.mark.parametrize("cell", [png(RED), "images/red.png"])
def test_a_column_may_hold_bare_bytes_or_paths(cell, tmp_path):
    folder = write_images(tmp_path)
    pq.write_table(pa.Table.from_pylist([trl("Why?", "So.", "No.", image=cell)]), folder / "pairs.parquet")
    pairs = read_pairs(folder / "pairs.parquet")
    assert pairs.images[0].getpixel((0, 0)) == RED
    assert pairs.rows[0].image_id == (cell if isinstance(cell, str) else pairs.images.digest(0))


def test_our_own_landing_is_read_with_margins_and_drops(tmp_path):
    folder = tmp_path / "pair-0123"
    write_shard(folder, "00000-a.parquet", [kept("x/0", RED), our_pair("x/1", dropped="too_close", detail="margin 0")])
    write_shard(folder, "00001-b.parquet", [kept("y/0", BLUE)])
    pairs = read_pairs(folder)
    said = ("What is it?", "A cat.", "A dog.", 1.5, 0.25, "a", "b", "a cat")
    assert pairs.rows == [PairRow("x/0", "x", *said), PairRow("y/0", "y", *said)]
    assert [row.margin for row in pairs.rows] == [1.25, 1.25]
    assert pairs.dropped == [("x/1", Drop("too_close", "margin 0"))]
    assert [image.getpixel((0, 0)) for image in pairs.images] == [RED, BLUE]


def test_a_table_names_the_shards_of_one_run_in_order(tmp_path):
    folder = tmp_path / "pair-0123"
    for name, pair_id in (("00000-a", "x/0"), ("00000-b", "y/0"), ("00001-c", "z/0")):
        write_shard(folder, f"{name}.parquet", [kept(pair_id, RED)])
    small = write_json(folder / "small.table", ["00000-b.parquet"])
    assert [row.id for row in read_pairs(folder).rows] == ["y/0"]  # one table: the folder means it
    large = write_json(folder / "large.table", ["00001-c.parquet", "00000-a.parquet"])
    assert [row.id for row in read_pairs(small).rows] == ["y/0"]
    assert [row.id for row in read_pairs(large).rows] == ["z/0", "x/0"]
    assert "holds the pairs of 2 prompts files: name one of large.table, small.table in it" in the_line(folder)


def test_a_shard_that_was_made_anew_is_read_anew(tmp_path):
    for answer in ("A cat.", "A cow."):
        write_shard(tmp_path / "pairs", "00000.parquet", [kept("x/0", RED) | {"chosen": answer}])
        assert [row.chosen for row in read_pairs(tmp_path / "pairs").rows] == [answer]


def test_repeated_ids_are_told_apart(tmp_path):
    folder = write_images(tmp_path)
    ids = ["cat", "cat", "cat#2", "cat", "dog", None]
    rows = [authors(*TWO[0]) | {"id": pair_id} for pair_id in ids]
    got = [row.id for row in read_pairs(write_json(folder / "pairs.json", rows)).rows]
    assert got == ["cat", "cat#2", "cat#2#2", "cat#3", "dog", "6"]


def test_numbers_and_texts_are_one_kind_of_id(tmp_path):
    folder = write_images(tmp_path)
    ids = [7, "7", "a", -1, ""]
    rows = [authors(*TWO[0]) | {"id": pair_id} for pair_id in ids]
    got = [row.id for row in read_pairs(write_lines(folder / "pairs.jsonl", rows)).rows]
    assert got == ["7", "7#2", "a", "-1", "5"]
    table = pa.Table.from_pylist([trl("Why?", "So.", "No.", image=png(RED), id=number) for number in (7, 8, 7)])
    pq.write_table(table, folder / "pairs.parquet")
    assert [row.id for row in read_pairs(folder / "pairs.parquet").rows] == ["7", "8", "7#2"]


def test_images_are_opened_when_they_are_asked_for(tmp_path):
    folder = write_images(tmp_path)
    pairs = read_pairs(write_json(folder / "pairs.json", [authors(*row) for row in TWO]))
    (folder / "images" / "red.png").write_bytes(png(BLUE))
    assert pairs.images[0].getpixel((0, 0)) == BLUE
    (folder / "images" / "red.png").unlink()
    assert pairs.images[1].getpixel((0, 0)) == BLUE
    with pytest.raises(ValueError, match=r"image not found: .*red\.png$"):
        pairs.images[0]


# What becomes no pair


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2}, "not_single_turn"),
        ({"conversations": [{"from": "gpt", "value": "b"}]}, "not_single_turn"),
        ({"rejected_conversations": []}, "not_single_turn"),
        (
            {"rejected_conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "A dog."}]},
            "two_questions",
        ),
        ({"image": ["images/red.png", "images/blue.png"]}, "several_images"),
    ],
)
def test_a_row_of_another_form_is_dropped_with_its_reason(change, reason, tmp_path):
    folder = write_images(tmp_path)
    rows = [authors(*TWO[0]) | change, authors(*TWO[1])]
    pairs = read_pairs(write_json(folder / "pairs.json", rows))
    assert pairs.rows == READ[1:]
    assert [(pair_id, drop.reason) for pair_id, drop in pairs.dropped] == [("cat", reason)]
    assert pairs.dropped[0][1].detail
    assert pairs.images[0].size == (7, 3)


def test_a_system_turn_is_dropped_with_its_reason(tmp_path):
    folder = write_images(tmp_path)
    row = trl("Why?", "So.", "No.", image="images/red.png")
    row["prompt"].insert(0, {"role": "system", "content": "Be brief."})
    pairs = read_pairs(write_json(folder / "pairs.json", [row]))
    assert pairs.dropped == [("1", Drop("not_single_turn", "turns of ['system', 'user', 'assistant']"))]


# Mistakes


def broken_authors(**change: Any) -> list[dict[str, Any]]:
    return [authors(*TWO[0]), authors(*TWO[1]) | change]


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (broken_authors(image="images/gone.png"), "no image 'images/gone.png' in {folder}; is the image folder right?"),
        (broken_authors(image="../secret.png"), "image '../secret.png' leads out of its folder {folder}"),
        (broken_authors(image="/etc/passwd"), "image '/etc/passwd' leads out of its folder {folder}"),
        (broken_authors(image="images/\0.png"), "cannot be the path of an image"),
        (broken_authors(image="images"), "no image 'images' in {folder}"),
        (broken_authors(image=None), "'image' must be a path inside the image folder, found None"),
        (broken_authors(image=3), "'image' must be a path inside the image folder, found 3"),
        (broken_authors(conversations="What?"), "'conversations' must be a list of {{from, value}}"),
        (broken_authors(conversations=[{"from": "human"}]), "'conversations' must be a list of {{from, value}}"),
        (broken_authors(rejected_conversations=None), "'rejected_conversations' must be a list of {{from, value}}"),
        (
            broken_authors(conversations=[{"from": "human", "value": 3}, {"from": "gpt", "value": "x"}]),
            "a turn must be text or a list of parts, found 3",
        ),
        (
            [authors(*TWO[0]), {"image": "images/red.png"}],
            "neither 'conversations' nor 'chosen' among its keys ['image']",
        ),
        ([authors(*TWO[0]), "text"], "expected an object, found str"),
    ],
)
@pytest.mark.parametrize("write", [write_json, write_lines])
def test_a_mistake_in_a_row_names_the_row(rows, line, write, tmp_path):
    folder = write_images(tmp_path)
    (tmp_path.parent / "secret.png").write_bytes(png(RED))
    path = write(folder / "pairs.jsonl", rows)
    place = "item 2" if write is write_json else "line 2"
    said = the_line(path)
    assert said.startswith(f"{path}, {place}: ")
    assert line.format(folder=folder) in said


def test_an_unreadable_image_file_is_one_line_before_training(tmp_path):
    folder = write_images(tmp_path)
    path = write_json(folder / "pairs.json", [authors(*row) for row in TWO])
    (folder / "images" / "blue.png").write_text("I am no image")
    place = f"{path}, item 2: {folder}/images/blue.png"
    assert the_line(path) == f"image cannot be read: {place} (not in a known format)"
    (folder / "images" / "blue.png").write_bytes(png(BLUE)[:-20])
    assert the_line(path).startswith(f"image cannot be read: {place} (")


def test_an_images_digest_is_of_its_encoded_content_wherever_it_stands(tmp_path):
    folder = write_images(tmp_path)
    (folder / "images" / "again.png").write_bytes(png(RED))
    rows = [authors(name, name, "What?", "A.", "B.") for name in ("red.png", "blue.png", "again.png")]
    files = read_pairs(write_json(folder / "pairs.json", rows)).images
    red, blue, again = (files.digest(index) for index in range(3))
    assert red == again != blue
    assert re.fullmatch("[0-9a-f]{16}", red)
    embedded = [trl("What?", "A.", "B.", images=[{"bytes": png(colour), "path": None}]) for colour in (RED, BLUE)]
    named = [trl("What?", "A.", "B.", images=[{"bytes": None, "path": "images/red.png"}])]
    pq.write_table(pa.Table.from_pylist(embedded + named), folder / "pairs.parquet")
    column = read_pairs(folder / "pairs.parquet").images
    assert [column.digest(index) for index in range(3)] == [
        red,
        hashlib.blake2b(png(BLUE), digest_size=8).hexdigest(),
        red,
    ]


def test_mistakes_in_parquet_are_one_line(tmp_path):
    assert "no pairs at" in the_line(tmp_path)
    assert "no pairs at" in the_line(tmp_path / "gone.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    assert "cannot be read as parquet (" in the_line(tmp_path / "broken.parquet")
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "bare.parquet")
    assert "no column 'image' or 'images' among ['prompt']" in the_line(tmp_path / "bare.parquet")


def test_a_row_without_an_image_is_named_and_one_with_two_is_dropped(tmp_path):
    def write(counts: list[int]) -> Path:
        images = [[{"bytes": png(RED), "path": None}] * count for count in counts]
        rows = [trl("Why?", "So.", "No.", images=one) for one in images]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
        return tmp_path / "pairs.parquet"

    assert [drop.reason for _, drop in read_pairs(write([1, 2])).dropped] == ["several_images"]
    assert the_line(write([1, 0])) == f"{tmp_path}/pairs.parquet, row 1: there is no image in column 'images'"


def test_lists_of_a_fixed_length_are_counted_too(tmp_path):
    row = trl("Why?", "So.", "No.", images=[png(RED), png(BLUE)])
    table = pa.Table.from_pylist([row])
    images = pa.array([row["images"]], pa.list_(pa.binary(), 2))
    pq.write_table(table.drop_columns(["images"]).append_column("images", images), tmp_path / "pairs.parquet")
    assert [drop.reason for _, drop in read_pairs(tmp_path / "pairs.parquet").dropped] == ["several_images"]


def test_a_column_of_something_else_than_images_is_one_line(tmp_path):
    row = trl("Why?", "So.", "No.") | {"image": {"width": 3}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "pairs.parquet")
    assert "row 0: there is no image in column 'image'" in the_line(tmp_path / "pairs.parquet")


def test_an_embedded_image_that_cannot_be_read_is_named_when_it_is_opened(tmp_path):
    write_shard(
        tmp_path / "pairs", "0.parquet", [kept("x/0", RED), kept("y/0", RED) | {"image": {"bytes": b"no image"}}]
    )
    pairs = read_pairs(tmp_path / "pairs")
    assert pairs.images[0].size == (5, 4)
    for ask in (pairs.images.size, pairs.images.__getitem__):
        with pytest.raises(ValueError, match=r"image cannot be read: .*pairs, row 1 \(not in a known format\)$"):
            ask(1)


def test_an_image_named_in_parquet_stays_in_its_folder(tmp_path):
    folder = write_images(tmp_path)
    rows = [
        trl("Why?", "So.", "No.", image={"bytes": None, "path": name}) for name in ("images/red.png", "../secret.png")
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    said = the_line(folder / "pairs.parquet")
    assert re.search(r"pairs\.parquet, row 1: image '\.\./secret\.png' leads out of its folder", said)


def test_a_store_of_one_table_is_read_and_one_of_two_says_which_there_are(tmp_path):
    for number in range(2):
        landing = tmp_path / f"pair-{number}"
        write_shard(landing, "h0-a.parquet", [kept("x/0", RED)])
        (landing / "all.table").write_text('["h0-a.parquet"]')
        if number == 0:
            assert [row.id for row in read_pairs(tmp_path).rows] == ["x/0"]
    assert "is a store with 2 tables of pairs: name one of" in the_line(tmp_path)


def test_an_image_that_cannot_be_read_is_named_with_its_row(tmp_path):
    folder = write_images(tmp_path)
    cut = folder / "images" / "red.png"
    cut.write_bytes(cut.read_bytes()[:40])
    line = the_line(write_json(folder / "pairs.json", [authors(*row) for row in TWO]))
    assert "pairs.json, item 1: " in line and "red.png" in line
