"""Files of pairs in four formats, one place of them spoilt, or the file itself."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from malformed.configs import BOUNDS
from malformed.torn import Draw, one_of, tear
from malformed.trees import spoil

FILES = ("set/pairs.json", "lines/pairs.jsonl", "trl/train-00000.parquet", "rlaif/train-00000.parquet")


def malform(folder: Path, draw: Draw) -> tuple[list[str], str]:
    """Spoil a file of pairs; return the command that reads it, and what was done."""
    name = one_of(draw, FILES)
    path, done = folder / name, "torn"
    if one_of(draw, [True, True, False]):
        done = _rows(path, draw)
    if done == "torn":
        done = tear(path, draw, [folder / "config.yaml", folder / "last.ckpt", *map(folder.joinpath, FILES)])
    return reading(folder, name, draw), f"{name}, {done}"


def reading(folder: Path, name: str, draw: Draw) -> list[str]:
    """Return a command that reads a set of pairs: mostly the quick one."""
    images = name.partition("/")[0]
    if one_of(draw, [True, True, True, False]):
        form = one_of(draw, ["reference", "trl", "trl-jsonl", "rlaif-v"])
        return ["convert", name, "out", "--format", form, "--images", images]
    where = ["--data.init_args.pairs", name, "--data.init_args.images", images]
    return ["fit", "--config", "config.yaml", *where, *BOUNDS]


def _rows(path: Path, draw: Draw) -> str:
    """Spoil a place in the rows; say "torn" if the format has no words for what came of it."""
    if path.suffix == ".parquet":
        rows, done = spoil(pq.read_table(path).to_pylist(), draw)
        try:
            table = pa.Table.from_pylist([row for row in rows if isinstance(row, dict)])
            pq.write_table(table, path)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
            return "torn"
        return done
    if path.suffix == ".jsonl":
        rows, done = spoil([json.loads(line) for line in path.read_text("utf-8").splitlines()], draw)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return done
    rows, done = spoil(json.loads(path.read_bytes()), draw)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return done
