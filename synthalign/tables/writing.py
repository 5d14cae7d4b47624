"""Preference pairs out, in formats that other people's tools read: a folder that is whole or absent."""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from synthalign.tables.forms import EXTRAS, reference_row, rlaif_v_row, trl_row
from synthalign.tables.hub import SHARD
from synthalign.tables.images import ImageColumn, ImageFiles
from synthalign.tables.pairset import PairRow, PairSet

Format = Literal["reference", "trl", "trl-jsonl", "rlaif-v"]
"""The forms of ``synthalign.tables.forms``; TRL's as parquet that holds the images, or as lines that name them."""

GROUP_BYTES, GROUP_ROWS = 1 << 26, 1000
"""Of a row group of parquet, at most: the bytes of its images, and its rows. So much is in memory at a time."""

FILE_BYTES = 1 << 29
"""Of the images in a file of parquet, about."""

CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: "{files}"
---
# {name}

{count} preference pairs: an image, a question about it, and a chosen and a rejected response.
Format: {format}. Written by SynthAlign.
"""


def write_pairs(pairs: PairSet, out: Path, format: Format) -> None:
    """Write a set of pairs, each with its image's encoded bytes unchanged, into a folder that does not exist yet.

    - ``reference``: ``pairs.json`` and ``images/``.
    - ``trl``: ``train-00000.parquet``, …, with the images inside.
    - ``trl-jsonl``: ``pairs.jsonl`` and ``images/``.
    - ``rlaif-v``: ``train-00000.parquet``, …, with the images inside.

    Scores, responders and the images' ids and prompts stand beside the format's own columns. What the set left out is
    in ``dropped.jsonl``; ``README.md`` tells the datasets library, and the hub, which files hold the pairs.

    Raises:
        ValueError: The folder exists, there is no pair, or an image is not as it should be; the message names it.
        RuntimeError: The disk does not take it. Nothing is left of it then.
    """
    if format not in get_args(Format):
        raise ValueError(f"no format {format!r}: there are {', '.join(get_args(Format))}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already: name another folder, or remove it")
    if not pairs.rows:
        raise ValueError(f"there is no pair to write to {out}: all {len(pairs.dropped)} rows were left out")
    with _whole(out) as folder:
        if format == "reference":
            _write_json(pairs, folder, "pairs.json", reference_row, ("[\n", ",\n", "\n]\n"))
        elif format == "trl-jsonl":
            _write_json(pairs, folder, "pairs.jsonl", trl_row, ("", "\n", "\n"))
        elif format == "trl":
            _write_parquet(pairs, folder, trl_row, _trl_schema())
        else:
            _write_parquet(pairs, folder, lambda pair, image: rlaif_v_row(pair, image, out.name), _rlaif_v_schema())
        if pairs.dropped:
            rows = [{"id": row_id, **drop._asdict()} for row_id, drop in pairs.dropped]
            (folder / "dropped.jsonl").write_text("".join(f"{_json(row)}\n" for row in rows), encoding="utf-8")
        files = {"reference": "pairs.json", "trl-jsonl": "pairs.jsonl"}.get(format, f"{SHARD}*.parquet")
        card = CARD.format(files=files, name=out.name, count=len(pairs.rows), format=format)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _write_json(
    pairs: PairSet, folder: Path, file: str, make: Callable[[PairRow, str], dict[str, Any]], marks: tuple[str, str, str]
) -> None:
    begin, between, end = marks
    (folder / "images").mkdir()
    names = _Names(pairs.images)
    with (folder / file).open("w", encoding="utf-8", newline="\n") as stream:
        for index in _with_bar(len(pairs.rows)):
            content = pairs.images.content(index)
            name = f"images/{names(index, content, pairs.rows[index].image_id)}"
            if not (folder / name).exists():
                (folder / name).write_bytes(content)
            stream.write((between if index else begin) + _json(make(pairs.rows[index], name)))
        stream.write(end)


def _write_parquet(
    pairs: PairSet, folder: Path, make: Callable[[PairRow, dict[str, Any]], dict[str, Any]], schema: pa.Schema
) -> None:
    files, written = 0, FILE_BYTES
    with ExitStack() as current:
        for rows, num_bytes in _groups(pairs, make):
            if written >= FILE_BYTES:
                current.close()
                path = folder / f"{SHARD}{files:05d}.parquet"
                writer = current.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
                files, written = files + 1, 0
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            written += num_bytes


def _groups(
    pairs: PairSet, make: Callable[[PairRow, dict[str, Any]], dict[str, Any]]
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Cut the rows into row groups, each with the bytes of its images."""
    names = _Names(pairs.images)
    rows: list[dict[str, Any]] = []
    num_bytes = 0
    for index in _with_bar(len(pairs.rows)):
        content = pairs.images.content(index)
        name = names(index, content, pairs.rows[index].image_id)
        rows.append(make(pairs.rows[index], {"bytes": content, "path": name}))
        num_bytes += len(content)
        if num_bytes >= GROUP_BYTES or len(rows) >= GROUP_ROWS:
            yield rows, num_bytes
            rows, num_bytes = [], 0
    if rows:
        yield rows, num_bytes


def _trl_schema() -> pa.Schema:
    from datasets import Features, Image, List, Value

    text = Value("string")
    turns = List({"role": text, "content": List({"type": text, "text": text})})
    sides = {"prompt": turns, "chosen": turns, "rejected": turns}
    return Features({"id": text, **sides, "images": List(Image()), **_extras()}).arrow_schema


def _rlaif_v_schema() -> pa.Schema:
    from datasets import Features, Image, Value

    before, after = ("question", "chosen", "rejected"), ("origin_dataset", "origin_split", "idx", "image_path")
    texts = {name: Value("string") for name in (*before, *after)}
    return Features({"ds_name": Value("string"), "image": Image(), **texts, **_extras()}).arrow_schema


def _extras() -> dict[str, Any]:
    from datasets import Value

    return {name: Value("float64" if name.endswith("_score") else "string") for name in EXTRAS}


class _Names:
    """Name each image's file after its id; images of one content share a file, and no two contents do."""

    def __init__(self, images: ImageFiles | ImageColumn) -> None:
        self.images = images
        self.of: dict[bytes, str] = {}  # by the content's digest
        self.taken: set[str] = set()  # in lower case: some disks know no other
        self.numbers: dict[str, int] = {}  # the last one given to each wish, in lower case too

    def __call__(self, index: int, content: bytes, image_id: str) -> str:
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if digest not in self.of:
            suffix = self.images.suffix(index)
            stem = image_id.removeprefix("images/").removesuffix(suffix)
            stem = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).lstrip(".")[:100] or "image"
            name = wish = f"{stem}{suffix}"
            while name.lower() in self.taken:
                number = self.numbers.get(wish.lower(), 1) + 1
                self.numbers[wish.lower()] = number
                name = f"{stem}-{number}{suffix}"
            self.of[digest] = name
            self.taken.add(name.lower())
        return self.of[digest]


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes ``out`` at the end, or is removed."""
    out = out.absolute()
    part = out.with_name(f".{out.name}.{secrets.token_hex(8)}.part")
    try:
        part.mkdir(parents=True)
        yield part
        for path in [*part.rglob("*"), part]:
            _sync(path)
        os.replace(part, out)
        _sync(out.parent)
    except OSError as error:
        raise RuntimeError(f"{out} cannot be written ({error.strerror or error}): nothing is left of it") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _with_bar(count: int) -> Iterator[int]:
    yield from tqdm(range(count), desc="writing pairs", unit="pair")


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)
