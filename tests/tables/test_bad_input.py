"""Whatever is wrong with a set of pairs: one line that names file and row, exit status 2, and nothing written."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import BLUE, RED, TWO, authors, kept, png, trl, write_images, write_json, write_lines, write_shard
from PIL import Image

from synthalign.cli import main


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((60, 50), 80).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says so; its pixels are few."""
    content = png(RED)
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def line_of(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a conversion that must fail, and must leave nothing."""
    out = path.parent / "out"
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(path), str(out), "--format", "trl"])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("synthalign: error: ") and len(line) < 400
    assert not out.exists() and not list(path.parent.glob(".out*"))
    return line.removeprefix("synthalign: error: ")


# Files that are none


def nothing(path: Path) -> None:
    pass


def a_folder(path: Path) -> None:
    path.mkdir()


def holding(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


def cut_in_half(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([trl("Why?", "So.", "No.", image=png(RED))]), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def damaged_inside(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([trl("Why?", "So." * 999, "No.", image=png(RED))]), path, compression="zstd")
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes(len(content) // 3) + content[40 + len(content) // 3 :])


ROW = json.dumps(authors(*TWO[0]), ensure_ascii=False)


@pytest.mark.parametrize(
    ("name", "make", "line"),
    [
        ("pairs.json", nothing, "no such file: {path}"),
        ("pairs.json", a_folder, "{path} is a folder, not a file"),
        ("pairs.json", holding(b""), "{path} holds no pairs: there is not one row in it"),
        ("pairs.jsonl", holding(b"\n \n"), "{path} holds no pairs: there is not one row in it"),
        ("pairs.json", holding(b"[]"), "{path} holds no pairs: there is not one row in it"),
        ("pairs.json", holding(f"[{ROW},\n{ROW[:50]}".encode()), "{path}, line 2: malformed JSON"),
        ("pairs.jsonl", holding(f"{ROW}\r\n{ROW[:-1]}\r\n".encode()), "{path}, line 2: malformed JSON"),
        ("pairs.jsonl", holding(f"{ROW}\n{'[' * 200_000}".encode()), "{path}, line 2: malformed JSON: maximum rec"),
        ("pairs.jsonl", holding(f'{ROW}\n{{"id": {"1" * 5000}}}'.encode()), "{path}, line 2: malformed JSON: Exceeds"),
        ("pairs.json", holding(ROW.replace("cat", "chaté").encode("latin-1")), "{path}: not UTF-8 text at byte"),
        ("pairs.json", holding(ROW.encode("utf-16")), "{path}: not UTF-8 text at byte 0"),
        ("pairs.parquet", nothing, "no pairs at {path}: expected a .json, .jsonl or .parquet file or a folder"),
        ("pairs.parquet", a_folder, "no pairs at {path}: expected a .json, .jsonl or .parquet file or a folder"),
        ("pairs.parquet", holding(b""), "{path}: cannot be read as parquet ("),
        ("pairs.parquet", cut_in_half, "{path}: cannot be read as parquet ("),
        ("pairs.parquet", damaged_inside, "{path}: cannot be read as parquet ("),
        ("pairs.table", nothing, "no pairs at {path}"),
        ("pairs.table", holding(b'["a.parquet", '), "{path} is damaged ("),
        ("pairs.table", holding(b"\xff\xfe"), "{path} is damaged ("),
        ("pairs.table", holding(b"[3]"), "{path} is damaged ("),
        ("pairs.table", holding(b'["a.parquet"]'), "{path} names a.parquet, which is not beside it"),
    ],
)
def test_a_file_that_is_none(name, make, line, tmp_path, capsys):
    write_images(tmp_path)
    path = tmp_path / name
    make(path)
    assert line_of(path, capsys).startswith(line.format(path=path))


def test_the_damaged_shard_among_whole_ones_is_named(tmp_path, capsys):
    for number in range(3):
        write_shard(tmp_path / "in", f"{number}.parquet", [kept(f"{number}/0", RED)])
    (tmp_path / "in" / "1.parquet").write_bytes(b"PAR1")
    assert line_of(tmp_path / "in", capsys).startswith(f"{tmp_path}/in/1.parquet: cannot be read as parquet (")


# Values that are none


BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"id": ["x"]}, "'id' must be text or a whole number, found ['x']"),
    ({"id": 1.5}, "'id' must be text or a whole number, found 1.5"),
    ({"id": True}, "'id' must be text or a whole number, found True"),
    ({"chosen_score": float("nan")}, "'chosen_score' must be a finite number or null, found nan"),
    ({"rejected_score": float("-inf")}, "'rejected_score' must be a finite number or null, found -inf"),
    ({"chosen_score": "high"}, "'chosen_score' must be a finite number or null, found 'high'"),
    ({"chosen_responder": 7}, "'chosen_responder' must be text, found 7"),
    ({"image_id": 0.5}, "'image_id' must be text or a whole number, found 0.5"),
    ({"chosen": 7}, "'chosen' must be "),
    ({"rejected": None}, "'rejected' must be "),
]


@pytest.mark.parametrize(("change", "line"), BAD_VALUES)
@pytest.mark.parametrize("form", ["trl", "rlaif-v"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_wrong_value_is_named_with_its_row(change, line, form, suffix, tmp_path, capsys):
    write_images(tmp_path)
    if form == "trl":
        row = trl("Why?", "So.", "No.", image="images/red.png")
    else:
        row = {"question": "Why?", "chosen": "So.", "rejected": "No.", "image": "images/red.png"}
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".jsonl":
        write_lines(path, [row, row | change])
        place = f"{path}, line 2: "
    else:  # a column has one type: all rows are wrong, and the first is named
        pq.write_table(pa.Table.from_pylist([row | change]), path)
        place = f"{path}, row 0: "
    assert line_of(path, capsys).startswith(place + line)


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_in_our_own_table_is_named_with_its_row(score, tmp_path, capsys):
    write_shard(tmp_path / "in", "0.parquet", [kept("x/0", RED), kept("y/0", RED) | {"chosen_score": score}])
    said = line_of(tmp_path / "in", capsys)
    assert said == f"{tmp_path}/in, row 1: 'chosen_score' must be a finite number or null, found {score}"


@pytest.mark.parametrize("column", ["rejected", "question", "image", "id"])
def test_a_column_that_our_own_table_lacks_is_named(column, tmp_path, capsys):
    write_shard(tmp_path / "in", "0.parquet", [kept("x/0", RED)])
    path = tmp_path / "in" / "0.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    assert f"{tmp_path}/in: no column '{column}'" in line_of(tmp_path / "in", capsys)


@pytest.mark.parametrize(
    ("image", "line"),
    [
        (None, "there is no image in column 'image'"),
        ({"bytes": None, "path": None}, "there is no image in column 'image'"),
        ({"bytes": b"", "path": None}, "there is no image in column 'image'"),
        ([], "there is no image in column 'image'"),
        ([None], "there is no image in column 'image'"),
        (7, "column 'image' must hold images or their paths: 7"),
        ("images/gone.png", "no image 'images/gone.png' in "),
        ("../pairs.parquet", "image '../pairs.parquet' leads out of its folder "),
    ],
)
def test_a_row_of_a_table_without_an_image_is_named(image, line, tmp_path, capsys):
    write_images(tmp_path)
    types = {dict: pa.struct({"bytes": pa.binary(), "path": pa.string()}), list: pa.list_(pa.binary()), int: pa.int64()}
    column = pa.array([image], types.get(type(image), pa.string()))
    table = pa.Table.from_pylist([trl("Why?", "So.", "No.")]).append_column("image", column)
    pq.write_table(table, tmp_path / "pairs.parquet")
    assert line_of(tmp_path / "pairs.parquet", capsys).startswith(f"{tmp_path}/pairs.parquet, row 0: {line}")


# Images that are none


BAD_IMAGES: list[tuple[bytes, str]] = [
    (b"I am no image", "image cannot be read: {place} (not in a known format)"),
    (png(RED, (64, 64))[:-20], "image cannot be read: {place} ("),
    (jpeg()[: len(jpeg()) // 2], "image cannot be read: {place} (image file is truncated"),
    (png_of(20_000, 10_000), "image is too large: {place} (more than 67 megapixels); make it smaller"),
    (png_of(10_000, 10_000), "image is too large: {place} (more than 67 megapixels); make it smaller"),
    (png_of(8193, 8192), "image is too large: {place} (more than 67 megapixels); make it smaller"),
]


@pytest.mark.parametrize(("content", "line"), BAD_IMAGES)
def test_a_file_that_is_no_image_is_named_before_training(content, line, tmp_path, capsys):
    folder = write_images(tmp_path)
    (folder / "images" / "blue.png").write_bytes(content)
    path = write_json(folder / "pairs.json", [authors(*row) for row in TWO])
    assert line_of(path, capsys).startswith(line.format(place=f"{path}, item 2: {folder}/images/blue.png"))


@pytest.mark.parametrize(("content", "line"), BAD_IMAGES)
def test_embedded_bytes_that_are_no_image_are_named_before_training(content, line, tmp_path, capsys):
    rows = [trl("Why?", "So.", "No.", images=[{"bytes": one, "path": None}]) for one in (png(BLUE), content)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    said = line_of(tmp_path / "pairs.parquet", capsys)
    assert said.startswith(line.format(place=f"{tmp_path}/pairs.parquet, row 1"))


def test_an_empty_image_file_is_named(tmp_path, capsys):
    folder = write_images(tmp_path)
    (folder / "images" / "blue.png").write_bytes(b"")
    path = write_json(folder / "pairs.json", [authors(*row) for row in TWO])
    said = line_of(path, capsys)
    assert said == f"image cannot be read: {path}, item 2: {folder}/images/blue.png (not in a known format)"


def test_a_link_that_leads_out_of_the_image_folder_is_refused(tmp_path, capsys):
    folder = write_images(tmp_path / "set")
    (tmp_path / "secret.png").write_bytes(png(RED))
    (folder / "images" / "blue.png").unlink()
    (folder / "images" / "blue.png").symlink_to(tmp_path / "secret.png")
    path = write_json(folder / "pairs.json", [authors(*row) for row in TWO])
    assert line_of(path, capsys) == f"{path}, item 2: image 'images/blue.png' leads out of its folder {folder}"


# The command


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--push", "no-owner"], "'no-owner' is no name of a dataset on the hub: say owner/name"),
        (["--private"], "--private says how to --push"),
        (["--images", "gone"], "no image 'images/red.png' in gone; is the image folder right?"),
    ],
)
def test_a_mistake_in_the_command_is_found_before_anything_is_written(more, line, tmp_path, capsys):
    folder = write_images(tmp_path)
    path = write_json(folder / "pairs.json", [authors(*row) for row in TWO])
    with pytest.raises(SystemExit):
        main(["convert", str(path), str(tmp_path / "out"), "--format", "trl", *more])
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said and not (tmp_path / "out").exists()


def test_the_last_line_says_where_the_pairs_are_how_many_and_what_was_left_out(tmp_path, capsys):
    folder = write_images(tmp_path)
    several = authors(*TWO[0]) | {"image": ["images/red.png", "images/blue.png"]}
    path = write_json(folder / "pairs.json", [*(authors(*row) for row in TWO), several])
    main(["convert", str(path), str(tmp_path / "out"), "--format", "rlaif-v"])
    assert capsys.readouterr().out == f"{tmp_path}/out: 2 pairs; dropped 1 (several_images 1)\n"
