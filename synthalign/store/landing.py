"""A landing: the table of one pipeline stage on disk, in shards that are whole or absent.

A landing's folder is named by what made it (the stage, its parts' settings, their weights, and the landings it was
made from), a shard by the rows it holds. So a finished shard is never computed again, and a changed setting never meets
an old result.

A shard need not lie in one file. Rows that are added to a table later land in files of their own, beside those of
their shard that had landed before.
"""

import json
import os
import secrets
from bisect import bisect_left, insort
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthalign.store.recipes import digest
from synthalign.store.shards import Shard

HALVED = b"halved"
"""Key of a shard's metadata: one line for each batch that was halved for lack of memory, whose last bits may differ."""


class Landing:
    """One stage's table, sharded.

    Args:
        root: Folder that holds the landings of a run.
        stage: Name of the stage, such as ``answer``.
        recipe: What the table is made from; JSON-able.
        schema: The columns. What rows are made from names them in the column ``key``, where there is one.
    """

    def __init__(self, root: Path, stage: str, recipe: dict[str, Any], schema: pa.Schema) -> None:
        self.recipe = {"stage": stage, **recipe}
        self.address = digest(self.recipe)
        self.folder = root / f"{stage}-{self.address}"
        self.schema = schema
        self._noted: dict[str, list[str]] = {}  # names of files by their places
        self._places: list[str] = []  # these places, in order
        self._looked = False

    def path(self, shard: Shard) -> Path:
        """Where the shard is, or will be, if it lands at once."""
        return self.folder / shard.name

    def has(self, shard: Shard) -> bool:
        """Whether the shard has landed at once."""
        return self.path(shard).exists()

    def missing(self, shard: Shard, keys: Sequence[str]) -> list[str]:
        """Return those of a shard's keys whose rows have not landed, in whatever file."""
        if self.has(shard):
            return []
        landed = {key for path in self._files(shard) for key in _column(path, "key")}
        return [key for key in keys if key not in landed]

    def write(self, shard: Shard, rows: list[dict[str, Any]], notes: Sequence[str] = ()) -> None:
        """Land the shard's rows: all of them or, if the process dies on the way, none.

        Raises:
            RuntimeError: The disk is full, or cannot be written for another reason.
        """
        self._write(self.path(shard), rows, notes)

    def add(self, shard: Shard, rows: list[dict[str, Any]], notes: Sequence[str] = ()) -> None:
        """Land some of the shard's rows, the others having landed before, as ``write`` lands them all."""
        name = digest([row["key"] for row in rows])
        self._write(self.folder / f"{shard.place}-{name}.parquet", rows, notes)

    def _write(self, path: Path, rows: list[dict[str, Any]], notes: Sequence[str]) -> None:
        schema = self.schema.with_metadata({HALVED: "\n".join(notes)}) if notes else self.schema
        table = pa.Table.from_pylist(rows, schema=schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        recipe = self.folder / "recipe.json"
        if not recipe.exists():
            write_atomically(recipe, (json.dumps(self.recipe, indent=2, sort_keys=True) + "\n").encode())
        write_atomically(path, sink.getvalue().to_pybytes())
        if self._looked:
            self._note(path.name)

    def read(self, shard: Shard, columns: list[str] | None = None) -> list[dict[str, Any]]:
        """Read the rows of a shard that landed at once, all columns or those named.

        Raises:
            ValueError: Something other than a crash has damaged the file.
        """
        return self.read_file(self.path(shard), columns)

    def gather(self, shard: Shard, keys: Sequence[str], columns: list[str] | None = None) -> list[dict[str, Any]]:
        """Read the rows with these keys, in whatever files of the shard they landed, in the order of the keys.

        Raises:
            ValueError: As ``read``.
            KeyError: A row has not landed.
        """
        wanted = set(keys)
        columns = columns and list(dict.fromkeys(["key", *columns]))
        paths = [self.path(shard)]
        if not self.has(shard):  # other rows lie there too, and may be large
            paths = [path for path in self._files(shard) if not wanted.isdisjoint(_column(path, "key"))]
        rows: dict[str, dict[str, Any]] = {}
        for path in paths:
            found = {row["key"]: row for row in self.read_file(path, columns) if row["key"] in wanted}
            rows = found | rows  # of two that hold a row the first one counts
        return [rows[key] for key in keys]

    def look(self) -> None:
        """Take note of the files that have landed; those that this object lands are noted by themselves."""
        self._noted, self._places, self._looked = {}, [], True
        for name in sorted(os.listdir(self.folder)) if self.folder.is_dir() else []:
            if name.endswith(".parquet") and name[0] != ".":
                self._note(name)

    def _note(self, name: str) -> None:
        place = name.partition("-")[0]
        if place not in self._noted:
            insort(self._places, place)
            self._noted[place] = []
        if name not in self._noted[place]:
            self._noted[place].append(name)

    def _files(self, shard: Shard) -> list[Path]:
        """List the files that may hold rows of a shard: their places begin alike, as far as both go."""
        if not self._looked:
            self.look()
        shorter = [place for end in range(len(shard.place)) if (place := shard.place[:end]) in self._noted]
        first, last = (bisect_left(self._places, end) for end in (shard.place, shard.place + "~"))
        return [self.folder / name for place in [*shorter, *self._places[first:last]] for name in self._noted[place]]

    def read_file(self, path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
        """Read the rows of a file of this landing.

        Raises:
            ValueError: Something other than a crash has damaged the file.
        """
        return _table(path, columns).to_pylist()

    def halved(self, shard: Shard, keys: Sequence[str]) -> list[str]:
        """Return what was noted of batches that were halved for lack of memory while rows of this shard were made."""
        wanted = set(keys)
        paths = [path for path in self._files(shard) if not wanted.isdisjoint(_column(path, "key"))]
        notes = [(pq.read_schema(path).metadata or {}).get(HALVED, b"").decode() for path in paths]
        return [line for note in notes for line in note.splitlines()]


def _column(path: Path, name: str) -> list[str]:
    return _table(path, [name]).column(name).to_pylist()


def _table(path: Path, columns: list[str] | None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged ({reason}): delete it and run again") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, and the folder it is in, that is whole or absent, whatever happens to the process or the machine.

    Raises:
        RuntimeError: The disk is full, or cannot be written for another reason.
    """
    # A name that no other rank uses, be it a thread or, on a shared disk, a process of the same number elsewhere.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise RuntimeError(
            f"{path} cannot be written ({error.strerror or error}): mend that and run again; what was written before "
            "stays"
        ) from error
