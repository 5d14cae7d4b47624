"""Preference pairs in: our own landing, other people's files, and sets on the hub."""

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from synthalign.tables.columns import TABLE_SUFFIX
from synthalign.tables.forms import EXTRAS, id_in, pair_of
from synthalign.tables.hub import NAME, gist, hub_table
from synthalign.tables.images import ImageColumn, ImageFiles, image_in
from synthalign.tables.pairset import PairRow, PairSet
from synthalign.tables.rows import json_rows
from synthalign.types import Drop

IDS = ("id", "idx")
"""Columns that a pair's id may stand in."""


def read_pairs(path: Path, images: Path | None = None) -> PairSet:
    """Read a set of preference pairs in any of the formats known (``synthalign.tables.forms`` describes them).

    Ids are text: a whole number is read as its digits, a row without one gets its number, and the second ``cat``
    becomes ``cat#2``. Every image of other people's sets is checked now, before any training begins.

    Args:
        path: A .json, .jsonl, .parquet or .table file; a folder of parquet files, or with a pairs.json or pairs.jsonl;
            or ``owner/name``, or ``owner/name@revision``, of a dataset on the hub, whose train split is meant.
        images: Folder of the images, where rows name them by path; by default the folder of ``path``.

    Raises:
        ValueError: The file, a row or an image is not as it should be; the message names it.
        RuntimeError: The disk has no room for the datasets library's copy of a parquet set.
    """
    if not _can_be_path(path):
        raise ValueError(f"no pairs at {str(path)[:60]!r}: that cannot be a path")
    if path.is_dir():
        path = _file_in(path)
    if path.suffix in {".json", ".jsonl"}:
        pairs = _pairs_from_json(path, images or path.parent)
    elif not path.exists() and path.suffix not in {".parquet", TABLE_SUFFIX} and NAME.fullmatch(str(path)):
        pairs = _pairs_from_table(hub_table(str(path)), str(path), images or Path())
    else:
        pairs = _pairs_from_table(_table(path), str(path), images or (path if path.is_dir() else path.parent))
    if not pairs.rows and not pairs.dropped:
        raise ValueError(f"{path} holds no pairs: there is not one row in it")
    return pairs


def _can_be_path(path: Path) -> bool:
    try:
        path.exists()
    except (OSError, ValueError):  # too long a name, a byte that none has, links in a circle
        return False
    return True


def _file_in(folder: Path) -> Path:
    """Return the file of a folder that holds its pairs, or names their shards; else the folder itself."""
    tables = sorted(folder.glob(f"*{TABLE_SUFFIX}"))
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables)
        raise ValueError(f"{folder} holds the pairs of {len(tables)} prompts files: name one of {names} in it")
    if not tables and (landed := sorted(folder.glob(f"pair-*/*{TABLE_SUFFIX}"))):
        if len(landed) > 1:
            raise ValueError(
                f"{folder} is a store with {len(landed)} tables of pairs: name one of {', '.join(map(str, landed))}"
            )
        tables = landed
    found = [*tables, *(folder / name for name in ("pairs.json", "pairs.jsonl") if (folder / name).is_file())]
    return found[0] if found else folder


def _pairs_from_json(path: Path, folder: Path) -> PairSet:
    rows, paths, dropped = [], [], []
    places: dict[Path, str] = {}  # of each image, where it is named first
    unique = _UniqueIds()
    for number, (where, row) in enumerate(json_rows(path), 1):
        pair_id = unique(id_in(row, IDS, str(number), where))
        names = row.get("image") or row.get("images") or []
        names = names if isinstance(names, list) else [names]
        pair = pair_of(row, pair_id, str(names[0]) if names else "", where, len(names))
        if isinstance(pair, Drop):
            dropped.append((pair_id, pair))
            continue
        if not names or not isinstance(names[0], str):
            raise ValueError(f"{where}: 'image' must be a path inside the image folder, found {row.get('image')!r}")
        paths.append(image_in(folder, names[0], where))
        places.setdefault(paths[-1], where)
        rows.append(pair)
    once = ImageFiles(list(places), list(places.values()))
    for index in _with_bar(len(once)):
        once.verify(index)
    return PairSet(rows, ImageFiles(paths), dropped)


def _table(path: Path) -> Any:  # noqa: ANN401 - a Dataset, whose library ships no types
    """Open parquet: a file, a folder of them, or those that a table names; no row is read yet."""
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    if path.suffix == TABLE_SUFFIX and path.is_file():
        files = _named_in(path)
    else:
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"no pairs at {path}: expected a .json, .jsonl or .parquet file or a folder of parquet shards")
    for file in files:
        try:
            pq.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: cannot be read as parquet ({gist(error)})") from None
    disable_progress_bar()
    try:
        return Dataset.from_parquet([glob.escape(str(file)) for file in files])
    except Exception as error:  # the library wraps whatever pyarrow says in classes of its own
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno:
            raise RuntimeError(f"{path}: the disk does not take the datasets library's copy of it ({cause})") from None
        raise ValueError(f"{path}: cannot be read as parquet ({gist(cause)})") from None


def _named_in(table: Path) -> list[Path]:
    try:
        files = [table.parent / name for name in json.loads(table.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{table} is damaged ({gist(error)}): delete it and synthesize again") from None
    for file in files:
        if not file.is_file():
            raise ValueError(f"{table} names {file.name}, which is not beside it: synthesize again")
    return files


def _pairs_from_table(table: Any, place: str, folder: Path) -> PairSet:  # noqa: ANN401
    names = table.column_names
    ours = "dropped" in names
    column = "image" if "image" in names else "images"
    if column not in names:
        raise ValueError(f"{place}: no column 'image' or 'images' among {names}")
    if ours and (lost := [name for name in _OURS if name not in names]):
        raise ValueError(f"{place}: no column {', '.join(map(repr, lost))} among {names}")
    cells = table.data.column(column)
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    lists = any(kind(cells.type) for kind in is_list)
    counts = (pc.list_value_length(cells) if lists else pc.is_valid(cells)).to_pylist()
    # Of ours, not the candidates: each row has a list of them.
    read = {*_OURS, *EXTRAS, "dropped"} if ours else set(names) - {column}
    rows, kept, dropped = [], [], []
    unique = _UniqueIds()
    for index, row in enumerate(table.select_columns([name for name in names if name in read])):
        where = f"{place}, row {index}"
        pair_id = unique(id_in(row, IDS, str(index), where))
        if ours and row["dropped"] is not None:
            dropped.append((pair_id, Drop(row["dropped"], row["detail"])))
            continue
        if ours:
            row["image_prompt"] = row["prompt"]
        pair = pair_of(row, pair_id, "", where, int(counts[index] or 0))
        if isinstance(pair, Drop):
            dropped.append((pair_id, pair))
            continue
        if not counts[index]:
            raise ValueError(f"{where}: there is no image in column {column!r}")
        rows.append(pair)
        kept.append(index)
    images = ImageColumn(table, column, kept, folder, place)
    return PairSet(rows if ours else _checked(rows, images), images, dropped)


_OURS = ("id", "image_id", "prompt", "question", "chosen", "rejected", "detail")


def _checked(rows: list[PairRow], images: ImageColumn) -> list[PairRow]:
    """Check every image, and name it where its row does not: by its path or, embedded, by its content."""
    for index in _with_bar(len(rows)):
        images.verify(index)
        if not rows[index].image_id:
            rows[index] = rows[index]._replace(image_id=images.name(index) or images.digest(index))
    return rows


def _with_bar(count: int) -> Iterator[int]:
    yield from tqdm(range(count), desc="checking images", unit="image", delay=2, leave=False)


class _UniqueIds:
    """Tell repeated ids apart: the second ``cat`` becomes ``cat#2``."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}  # how often each id came, the ids given here included

    def __call__(self, row_id: str) -> str:
        unique = row_id
        while unique in self.seen:
            self.seen[row_id] += 1
            unique = f"{row_id}#{self.seen[row_id]}"
        self.seen[unique] = 1
        return unique
