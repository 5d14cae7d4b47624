"""A landing: the table of one pipeline stage on disk, in shards that are whole or absent.

A landing's folder is named by what made it (the stage, its parts' settings, their weights, and the landings it was
made from), a shard by the rows it holds. So a finished shard is never computed again, a changed setting never meets
an old result, and rows added to the input add only their shards.
"""

import dataclasses
import hashlib
import inspect
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

RUN_ONLY = frozenset({"device"})
"""Fields of a part that say where it runs, not what it makes."""

EDGE_BYTES = 1 << 20
"""A large weight file is fingerprinted by its size and this much of both its ends."""


class Shard(NamedTuple):
    """A fixed share of a stage's input: ``index`` in the table, ``digest`` of its rows, the rows themselves."""

    index: int
    digest: str
    rows: tuple[Any, ...]

    @property
    def name(self) -> str:
        """File name of the shard in every landing."""
        return f"{self.index:05d}-{self.digest}.parquet"


class Landing:
    """One stage's table, sharded.

    Args:
        root: Folder that holds the landings of a run.
        stage: Name of the stage, such as ``answer``.
        recipe: What the table is made from; JSON-able.
        schema: The columns.
    """

    def __init__(self, root: Path, stage: str, recipe: dict[str, Any], schema: pa.Schema) -> None:
        self.recipe = {"stage": stage, **recipe}
        self.address = digest(self.recipe)
        self.folder = root / f"{stage}-{self.address}"
        self.schema = schema

    def path(self, shard: Shard) -> Path:
        """Where the shard is, or will be."""
        return self.folder / shard.name

    def has(self, shard: Shard) -> bool:
        """Whether the shard has landed."""
        return self.path(shard).exists()

    def write(self, shard: Shard, rows: list[dict[str, Any]]) -> None:
        """Land the shard's rows: all of them or, if the process dies on the way, none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        recipe = self.folder / "recipe.json"
        if not recipe.exists():
            write_atomically(recipe, (json.dumps(self.recipe, indent=2, sort_keys=True) + "\n").encode())
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=self.schema), sink, compression="zstd")
        write_atomically(self.path(shard), sink.getvalue().to_pybytes())

    def read(self, shard: Shard, columns: list[str] | None = None) -> list[dict[str, Any]]:
        """Read the rows of a landed shard, all columns or those named."""
        return pq.read_table(self.path(shard), columns=columns).to_pylist()


def shards_of(rows: Sequence[Any], size: int) -> list[Shard]:
    """Cut a table into shards of ``size`` consecutive rows; the last may be shorter. Rows are JSON-able."""
    cut = [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]
    return [Shard(index, digest(part), part) for index, part in enumerate(cut)]


def digest(value: Any) -> str:  # noqa: ANN401 - anything JSON can carry
    """Return 16 hexadecimal digits that name a JSON-able value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def seed_of(*key: str | int) -> int:
    """Derive a 63-bit seed from a key such as (seed, id, sample): equal keys give equal seeds, on every machine."""
    text = json.dumps(key, ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def recipe_of(part: Any) -> Any:  # noqa: ANN401 - parts are whatever fits a Protocol
    """Describe a part so that whatever changes its results changes the description, and a moved folder does not.

    Objects are described by class and constructor arguments (kept under their own names, as dataclasses do), folders
    and files by their content.
    """
    if part is None or isinstance(part, bool | int | float):
        return part
    if isinstance(part, str | Path):
        path = Path(part)
        return {"content": fingerprint(path)} if path.exists() and str(part) else str(part)
    if isinstance(part, dict):
        return {str(key): recipe_of(value) for key, value in part.items()}
    if isinstance(part, list | tuple | set | frozenset):
        return [recipe_of(value) for value in part]
    kind = type(part)
    if dataclasses.is_dataclass(part):
        names = [field.name for field in dataclasses.fields(part) if field.init]
    else:
        names = [name for name in inspect.signature(kind).parameters if hasattr(part, name)]
    settings = {name: recipe_of(getattr(part, name)) for name in names if name not in RUN_ONLY}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **settings}


def fingerprint(path: Path) -> str:
    """Name the content of a file or folder: every file's relative name, size and, for large ones, both ends."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    content = hashlib.blake2b(digest_size=8)
    for file in files:
        size = file.stat().st_size
        content.update(f"{file.relative_to(path) if file != path else ''}\0{size}\0".encode())
        with file.open("rb") as stream:
            content.update(stream.read(EDGE_BYTES))
            if size > EDGE_BYTES:
                stream.seek(max(EDGE_BYTES, size - EDGE_BYTES))
                content.update(stream.read())
    return content.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is whole or absent, whatever happens to the process or the machine."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
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


@contextmanager
def sign_of_life(root: Path, rank: int, period_s: float = 2.0) -> Iterator[None]:
    """Touch this rank's sign of life every ``period_s`` seconds, so that the other ranks know a slow one from a dead."""
    root.mkdir(parents=True, exist_ok=True)
    path, done = _life(root, rank), threading.Event()

    def beat() -> None:
        while True:
            path.touch()
            if done.wait(period_s):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def wait_for(
    missing: Callable[[], Sequence[tuple[int, str]]], root: Path, silence_s: float = 120.0, period_s: float = 0.2
) -> None:
    """Wait until no shard is missing.

    Args:
        missing: Gives the (rank, shard name) pairs that have not landed.
        root: Where the ranks leave their signs of life.
        silence_s: A rank that owes a shard and shows no sign of life for this long is taken for dead, seconds.
        period_s: How often to look, seconds.

    Raises:
        RuntimeError: A rank that owes a shard is dead.
    """
    seen: dict[int, tuple[float, float]] = {}
    while owed := missing():
        now = time.monotonic()
        for rank in {rank for rank, _ in owed}:
            path = _life(root, rank)
            stamp = path.stat().st_mtime if path.exists() else 0.0
            if rank not in seen or seen[rank][0] != stamp:
                seen[rank] = (stamp, now)
            elif now - seen[rank][1] > silence_s:
                names = [name for owner, name in owed if owner == rank]
                raise RuntimeError(
                    f"rank {rank} has shown no sign of life for {silence_s:.0f} s and owes {len(names)} shards "
                    f"({names[0]}, …) in {root}; start the run again: finished shards are kept"
                )
        time.sleep(period_s)


def _life(root: Path, rank: int) -> Path:
    return root / f".rank-{rank:05d}.alive"
