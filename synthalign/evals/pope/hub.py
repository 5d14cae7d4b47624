"""POPE as a table with its images inside, as lmms-lab/POPE on the hub: rows of all splits, told apart by a column.

Source: the columns of lmms-lab/POPE's ``test`` split, at 4db1276.
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from synthalign.evals.pope.rows import PopeRow
from synthalign.store import write_atomically
from synthalign.tables.hub import NAME, gist, hub_folder
from synthalign.tables.images import verify

SPLIT = ("test*.parquet", "data/test*.parquet")
"""Where a dataset of the hub keeps its split of this name."""

SHARD = re.compile(r"^(.*)-\d+-of-(\d+)\.parquet$")
TEXTS = ("question_id", "question", "answer", "image_source", "category")
ROWS = 64
"""Rows whose images are in memory at a time."""


def parquet_of(source: str) -> list[Path]:
    """Return a table's files: one, those of a folder or of ``data`` in it, or those of a dataset on the hub.

    Where several splits of a dataset lie side by side, it is the one whose files begin with ``test``.

    Raises:
        ValueError: There is no such file, folder or dataset, or a shard of it is missing.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        folder = path
    elif NAME.fullmatch(source):
        folder = hub_folder(source, SPLIT)
    else:
        raise ValueError(f"no such file or folder: {source}; as a dataset of the hub it would be owner/name")
    here = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    files = [file for file in here if file.name.startswith("test")] or here
    if not files:
        raise ValueError(f"{source}: no parquet files at its top or in its folder 'data'")
    groups = Counter(match.groups() for file in files if (match := SHARD.search(file.name)))
    for (_, count), there in groups.items():
        if there != int(count):
            raise ValueError(f"{source}: {there} of {int(count)} shards are there; bring the others too")
    return files


def rows_of(files: Sequence[Path]) -> dict[str, list[PopeRow]]:
    """Read the questions of every split, in the order the splits come in; no image is read.

    Raises:
        ValueError: A file is no parquet, a column is missing, or a row is not as it should be; the message names it.
    """
    splits: dict[str, list[PopeRow]] = {}
    for file in files:
        for where, row in _rows(file, TEXTS):
            for name in TEXTS:
                if not row[name] and row[name] != 0:
                    raise ValueError(f"{where}: column {name!r} is empty")
            number, label = row["question_id"], str(row["answer"]).strip().lower()
            if label not in ("yes", "no"):
                raise ValueError(f"{where}: 'answer' must be yes or no, found {row['answer']!r}")
            one = PopeRow(where, number, str(row["image_source"]), str(row["question"]), label)
            splits.setdefault(str(row["category"]), []).append(one)
    return splits


def write_images(files: Sequence[Path], folder: Path, names: Collection[str]) -> dict[str, Path]:
    """Write each image once, its encoded bytes unchanged, named by ``image_source``; what is there already stays.

    Args:
        files: The table's.
        folder: Where the images go.
        names: Which of them are wanted.

    Returns:
        The images' paths by ``image_source``.

    Raises:
        ValueError: An image is missing or broken, one name stands for two images, or another file has the name already.
        RuntimeError: The disk does not take it.
    """
    paths: dict[str, Path] = {}
    digests: dict[str, bytes] = {}
    for file in files:
        for where, row in _rows(file, ("image_source", "image")):
            name, cell = str(row["image_source"]), row["image"]
            if name not in names:
                continue
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            if not isinstance(content, bytes) or not content:
                raise ValueError(f"{where}: there is no image in column 'image'")
            digest = hashlib.blake2b(content).digest()
            if name not in paths:
                paths[name] = folder / _file_name(name, content, where)
                _keep(paths[name], content, where)
            elif digests[name] != digest:
                raise ValueError(f"{where}: another image than before goes by the name {name!r}")
            digests[name] = digest
    return paths


def _rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with pq.ParquetFile(file) as table:
            if lost := [name for name in columns if name not in table.schema_arrow.names]:
                raise ValueError(f"{file}: no column {', '.join(map(repr, lost))} among {table.schema_arrow.names}")
            number = 0
            for batch in table.iter_batches(ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    yield f"{file}, row {number}", row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: cannot be read as parquet ({gist(error)})") from None


def _file_name(name: str, content: bytes, where: str) -> str:
    if "/" in name or "\\" in name or "\0" in name or name.startswith("."):
        raise ValueError(f"{where}: image_source {name!r} cannot name a file")
    verify(io.BytesIO(content), where)
    with Image.open(io.BytesIO(content)) as image:
        suffix = {"JPEG": ".jpg", "MPO": ".jpg"}.get(kind := str(image.format), f".{kind.lower()}")
    return name if name.lower().endswith((suffix, ".jpeg")) else name + suffix


def _keep(path: Path, content: bytes, where: str) -> None:
    if not path.exists():
        write_atomically(path, content)
    elif path.read_bytes() != content:
        raise ValueError(f"{where}: {path} is another image already; give the dataset a folder of its own")
