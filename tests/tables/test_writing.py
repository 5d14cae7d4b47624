"""What is written reads back as the same pairs with the same bytes of images, and is whole or absent."""

import io
import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pair_files import BLUE, RED, TWO, authors, kept, our_pair, png, write_images, write_json, write_shard
from PIL import Image

from synthalign.tables import Format, ImageFiles, PairRow, PairSet, read_pairs, write_pairs, writing
from synthalign.types import Drop

FORMATS: list[Format] = ["reference", "trl", "trl-jsonl", "rlaif-v"]


def encoded(format: str, color: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 5), color).save(stream, format)
    return stream.getvalue()


def landing(folder: Path) -> PairSet:
    """Five pairs about four images of three encodings, two of whose ids read alike, and one drop."""
    images = {"k/1": png(RED), "k_1": png(BLUE), "who": encoded("JPEG", RED), "猫": encoded("WEBP", BLUE)}
    ids = ["k/1/0", "k/1/1", "k_1/0", "who/0", "猫/0"]
    rows = [kept(pair_id, RED) for pair_id in ids]
    for row in rows:
        row["image"]["bytes"] = images[row["image_id"]]
    rows[1] |= {"chosen": "“Nobody.”\u2028\n誰も", "rejected": 'He said:\t"no" \\ {}', "chosen_score": None}
    write_shard(folder, "0.parquet", [*rows, our_pair("x/0", dropped="too_close", detail="margin 0")])
    return read_pairs(folder)


def contents(pairs: PairSet) -> list[bytes]:
    return [pairs.images.content(index) for index in range(len(pairs.rows))]


@pytest.fixture
def ours(tmp_path: Path) -> PairSet:
    return landing(tmp_path / "landing")


@pytest.mark.parametrize("format", FORMATS)
def test_a_set_read_back_has_the_same_pairs_and_the_same_bytes_of_images(format, ours, tmp_path):
    write_pairs(ours, tmp_path / "out", format)
    back = read_pairs(tmp_path / "out")
    assert back.rows == ours.rows
    assert [row.id for row in back.rows] == ["k/1/0", "k/1/1", "k_1/0", "who/0", "猫/0"]
    assert back.rows[0][5:] == (1.5, 0.25, "a", "b", "a cat")
    assert back.rows[1].margin is None
    assert contents(back) == contents(ours)
    assert len(set(contents(back))) == 4


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_formats_lead_into_each_other(first, second, ours, tmp_path):
    write_pairs(ours, tmp_path / "one", first)
    write_pairs(read_pairs(tmp_path / "one"), tmp_path / "two", second)
    back = read_pairs(tmp_path / "two")
    assert (back.rows, contents(back)) == (ours.rows, contents(ours))


def test_what_nobody_said_is_not_made_up(tmp_path):
    folder = write_images(tmp_path)
    pairs = read_pairs(write_json(folder / "pairs.json", [authors(*row) for row in TWO]))
    for format in FORMATS:
        write_pairs(pairs, tmp_path / format, format)
        assert read_pairs(tmp_path / format).rows == pairs.rows
        assert pairs.rows[0][5:] == (None,) * 5
    assert "score" not in (tmp_path / "reference" / "pairs.json").read_text("utf-8")


def test_the_authors_form_is_written_as_they_write_it(ours, tmp_path):
    write_pairs(ours, tmp_path / "out", "reference")
    row = json.loads((tmp_path / "out" / "pairs.json").read_text("utf-8"))[0]
    asked = {"from": "human", "value": "<image> What is it?"}
    assert row["image"] == "images/k_1.png"
    assert row["conversations"] == [asked, {"from": "gpt", "value": "A cat."}]
    assert row["rejected_conversations"] == [asked, {"from": "gpt", "value": "A dog."}]


def test_an_image_is_written_once_with_the_suffix_of_its_format(ours, tmp_path):
    write_pairs(ours, tmp_path / "out", "trl-jsonl")
    names = {path.name for path in (tmp_path / "out" / "images").iterdir()}
    assert names == {"k_1.png", "k_1-2.png", "who.jpg", "_.webp"}
    assert (tmp_path / "out" / "images" / "who.jpg").read_bytes() == encoded("JPEG", RED)


def test_thousands_of_images_whose_ids_read_alike_are_named_quickly():
    """The next number was once searched for from the first: minutes for what Chinese names come to."""
    pairs = PairSet([], ImageFiles([]), [])
    pairs.images.suffix = lambda index: ".png"  # type: ignore[method-assign]
    names, start = writing._Names(pairs.images), time.process_time()
    given = [names(n, str(n).encode(), "猫.png" if n % 2 else "犬") for n in range(30_000)]
    assert time.process_time() - start < 20
    assert len(set(given)) == 30_000 and given[:3] == ["_.png", "_-2.png", "_-3.png"]


def test_rlaif_vs_columns_come_first_and_as_it_has_them(ours, tmp_path):
    write_pairs(ours, tmp_path / "mine", "rlaif-v")
    table = pq.read_table(tmp_path / "mine" / "train-00000.parquet")
    columns = "ds_name image question chosen rejected origin_dataset origin_split idx image_path".split()
    assert sorted(table.column_names[:9]) == sorted(columns)
    assert {name: str(table.schema.field(name).type) for name in columns if name != "image"} == dict.fromkeys(
        set(columns) - {"image"}, "string"
    )
    assert table.column("ds_name").to_pylist() == ["mine"] * 5
    assert json.loads(table.column("origin_split")[0].as_py()) == {"model": {"chosen": "a", "rejected": "b"}}


def test_what_was_left_out_is_kept_beside_with_its_reason(ours, tmp_path):
    write_pairs(ours, tmp_path / "out", "trl")
    assert json.loads((tmp_path / "out" / "dropped.jsonl").read_text()) == {
        "id": "x/0",
        "reason": "too_close",
        "detail": "margin 0",
    }


def test_files_and_row_groups_are_cut_by_size_and_lose_nothing(ours, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "GROUP_ROWS", 1)
    monkeypatch.setattr(writing, "FILE_BYTES", 2 * len(png(RED)))
    write_pairs(ours, tmp_path / "out", "trl")
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert len(files) > 1
    assert sum(pq.ParquetFile(file).num_row_groups for file in files) == 5
    back = read_pairs(tmp_path / "out")
    assert (back.rows, contents(back)) == (ours.rows, contents(ours))


@pytest.mark.parametrize("format", FORMATS)
def test_memory_holds_a_group_of_images_and_not_the_set(format, tmp_path, monkeypatch):
    import datasets  # noqa: F401 - imported here, or its own memory would count

    monkeypatch.setattr(writing, "GROUP_BYTES", 4_000_000)
    rows, paths = [], []
    for number in range(60):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(png(RED) + number.to_bytes(1, "big") * 1_000_000)  # what follows a PNG's end is ignored
        rows.append(PairRow(str(number), str(number), "What?", "A.", "B."))
    tracemalloc.start()
    try:
        write_pairs(PairSet(rows, ImageFiles(paths), []), tmp_path / "out", format)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 15_000_000 < sum(path.stat().st_size for path in paths)


# TRL and the datasets library


@pytest.mark.parametrize("format", ["trl", "rlaif-v"])
def test_the_datasets_library_opens_the_folder_as_the_hub_would(format, ours, tmp_path):
    from datasets import load_dataset

    write_pairs(ours, tmp_path / "out", format)
    table = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(table) == 5
    image = table[3]["images"][0] if format == "trl" else table[3]["image"]
    assert (image.format, image.size) == ("JPEG", (6, 5))


@pytest.mark.parametrize("format", ["reference", "trl-jsonl"])
def test_the_datasets_library_finds_the_rows_and_not_the_drops(format, ours, tmp_path):
    from datasets import load_dataset

    write_pairs(ours, tmp_path / "out", format)
    table = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert table["id"][:] == [row.id for row in ours.rows]


def test_trls_own_collator_takes_the_rows(ours, tmp_path, tiny_llava):
    pytest.importorskip("trl")
    from datasets import load_dataset
    from transformers import AutoProcessor
    from trl.data_utils import is_conversational
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    write_pairs(ours, tmp_path / "out", "trl")
    table = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    rows = [table[index] for index in range(len(table))]
    assert all(is_conversational(row) for row in rows)
    processor = AutoProcessor.from_pretrained(tiny_llava)
    batch = DataCollatorForVisionPreference(processor)(rows)
    assert len(batch["input_ids"]) == 2 * len(rows)  # chosen, then rejected
    said = [
        processor.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    for text, wanted in zip(said, [row.chosen for row in ours.rows] + [row.rejected for row in ours.rows], strict=True):
        assert wanted in text


# Whole or absent


class Torn(ImageFiles):
    """Images of which the third cannot be had."""

    def content(self, index: int) -> bytes:
        if index == 2:
            raise KeyboardInterrupt
        return super().content(index)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_interrupted_leaves_nothing(format, tmp_path):
    folder = write_images(tmp_path / "in")
    paths = [folder / "images" / name for name in ("red.png", "blue.png", "red.png")]
    rows = [PairRow(str(index), "i", "What?", "A.", "B.") for index in range(3)]
    with pytest.raises(KeyboardInterrupt):
        write_pairs(PairSet(rows, Torn(paths), []), tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_that_cannot_be_read_is_named_and_nothing_is_left(format, tmp_path):
    write_shard(tmp_path / "in", "0.parquet", [kept("x/0", RED), kept("y/0", RED) | {"image": {"bytes": b"no image"}}])
    with pytest.raises(ValueError, match=r"^image cannot be read: .*in, row 1 \(not in a known format\)$"):
        write_pairs(read_pairs(tmp_path / "in"), tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_exists_is_never_overwritten(ours, tmp_path):
    (tmp_path / "out").mkdir()
    write_pairs(ours, tmp_path / "out", "trl")  # an empty folder may be there
    before = sorted((tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="exists already: name another folder, or remove it"):
        write_pairs(ours, tmp_path / "out", "reference")
    assert sorted((tmp_path / "out").iterdir()) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        write_pairs(ours, tmp_path / "file", "trl")
    with pytest.raises(RuntimeError, match="cannot be written"):
        write_pairs(ours, tmp_path / "file" / "out", "trl")


def test_a_set_of_no_pairs_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"no pair to write to .*out: all 1 rows were left out"):
        write_pairs(PairSet([], ImageFiles([]), [("x", Drop("empty", ""))]), tmp_path / "out", "trl")
    assert not (tmp_path / "out").exists()


def converted_on_a_full_disk(pairs: Path, out: Path, format: str) -> str:
    """The last line of a conversion that may write 20 kB a file and not a byte more."""
    script = f"""
import resource
import datasets, synthalign.pipeline
from synthalign.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
main(["convert", {str(pairs)!r}, {str(out)!r}, "--format", {format!r}])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("format", ["reference", "trl"])
def test_a_disk_that_takes_no_more_is_one_line_and_nothing_is_left(format, tmp_path):
    folder = write_images(tmp_path / "in")
    said = " ".join(str(number**7) for number in range(3000))
    path = write_json(folder / "pairs.json", [authors(*TWO[0][:3], said, "No.")])
    line = converted_on_a_full_disk(path, tmp_path / "out", format)
    assert line.startswith(f"synthalign: error: {tmp_path}/out cannot be written (")
    assert "too large" in line and line.endswith("nothing is left of it")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_disk_without_room_for_the_datasets_librarys_cache_is_one_line(tmp_path):
    said = " ".join(str(number**7) for number in range(3000))
    write_shard(tmp_path / "in", "0.parquet", [kept("x/0", RED) | {"chosen": said}])
    line = converted_on_a_full_disk(tmp_path / "in", tmp_path / "out", "reference")
    assert "in: the disk does not take the datasets library's copy of it (" in line
