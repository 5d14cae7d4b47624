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
import secrets
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

NEVER_PATHS = frozenset({"revision", "variant", "dtype"})
"""Fields that a folder of the same name in the working directory must not turn into its content."""

WHOLE_BYTES = 1 << 26
"""Files up to this size are fingerprinted whole."""

SAMPLE_BYTES, SAMPLE_STRIDE = 1 << 12, 1 << 20
"""Larger ones by this much of every so much: training changes a matrix throughout, and large models' are larger yet."""


class Shard(NamedTuple):
    """A fixed share of a stage's input: its place among the shards, the digest of its rows, the rows themselves."""

    number: int
    digest: str
    rows: tuple[Any, ...]

    @property
    def name(self) -> str:
        """File name of the shard in every landing."""
        return f"{self.number:05d}-{self.digest}.parquet"


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
        """Read the rows of a landed shard, all columns or those named.

        Raises:
            ValueError: Something other than a crash has damaged the file.
        """
        try:
            return pq.read_table(self.path(shard), columns=columns).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.path(shard)} is damaged ({reason}): delete it and run again") from None


def shards_of(rows: Sequence[Any], size: int) -> list[Shard]:
    """Cut a table into shards of ``size`` consecutive rows; the last may be shorter. Rows are JSON-able."""
    cut = [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]
    return [Shard(number, digest(part), part) for number, part in enumerate(cut)]


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

    Objects are described by class and constructor arguments, folders and files by their content.

    Raises:
        ValueError: An object does not keep its constructor's arguments under their own names, as dataclasses do, so
            that two settings of it could not be told apart.
    """
    if part is None or isinstance(part, bool | int | float):
        return part
    if isinstance(part, str | Path):
        # Not Path.exists: a chat template is too long for a file's name.
        return {"content": fingerprint(Path(part))} if os.path.exists(part) else str(part)
    if isinstance(part, dict):
        return {str(key): recipe_of(value) for key, value in part.items()}
    if isinstance(part, set | frozenset):
        return sorted((recipe_of(value) for value in part), key=digest)
    if isinstance(part, list | tuple) and not hasattr(part, "_fields"):
        return [recipe_of(value) for value in part]
    if inspect.isroutine(part) or isinstance(part, type):
        return {"name": f"{part.__module__}.{part.__qualname__}"}
    kind = type(part)
    settings = {name: getattr(part, name) for name in _settings(part) if name not in RUN_ONLY}
    described = {name: value if name in NEVER_PATHS else recipe_of(value) for name, value in settings.items()}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **described}


def _settings(part: Any) -> list[str]:  # noqa: ANN401
    """Name the constructor's arguments, which must all be attributes."""
    kind = type(part)
    if dataclasses.is_dataclass(part):
        return [field.name for field in dataclasses.fields(part) if field.init]
    names = list(inspect.signature(kind).parameters)
    if lost := [name for name in names if not hasattr(part, name)]:
        raise ValueError(
            f"{kind.__qualname__} does not keep its arguments {', '.join(lost)}: store each as an attribute of that "
            "name, so that results made with other settings can be told apart"
        )
    return names


def fingerprint(path: Path) -> str:
    """Name the content of a file, or of a folder's files and their names.

    Large files are sampled. Hidden ones are left out: downloads keep their dates in them.
    """
    names = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file()) if path.is_dir() else [Path()]
    content = hashlib.blake2b(digest_size=8)
    for name in names:
        if any(part.startswith(".") for part in name.parts):
            continue
        file = path / name
        size = file.stat().st_size
        content.update(f"{name.as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= WHOLE_BYTES:
                content.update(stream.read())
                continue
            for start in [*range(0, size - SAMPLE_BYTES, SAMPLE_STRIDE), size - SAMPLE_BYTES]:
                stream.seek(start)
                content.update(stream.read(SAMPLE_BYTES))
    return content.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is whole or absent, whatever happens to the process or the machine."""
    # A name that no other rank uses, be it a thread or, on a shared disk, a process of the same number elsewhere.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
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
    """Touch this rank's sign of life every ``period_s`` seconds: the others know a slow rank from a dead one by it."""
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
