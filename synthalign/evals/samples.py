"""What the model said to every question, on disk: one JSON line per question, in the evaluation's order.

Each rank writes a part, and one of them puts the parts together, so the answers of a run never meet in one memory
before they are on disk.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthalign.store import write_atomically
from synthalign.types import Question, Reply


def sample_rows(
    questions: Sequence[Question], replies: Sequence[Reply], verdicts: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return one JSON-able row per question: what was asked, what was said, and the verdict on it."""
    return [
        {
            "id": question.id,
            "image": question.image.as_posix(),
            "kind": question.kind,
            "question": question.text,
            "reply": reply.text,
            "truncated": reply.truncated,
            "yes_margin": reply.yes_margin,
            "truth": question.truth,
            **verdict,
        }
        for question, reply, verdict in zip(questions, replies, verdicts, strict=True)
    ]


def write_part(folder: Path, name: str, rank: int, rows: Sequence[dict[str, Any]]) -> None:
    """Write a rank's rows beside where the whole will be."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(_part(folder, name, rank), lines.encode())


def merge_parts(folder: Path, name: str, world_size: int, order: Sequence[str]) -> Path:
    """Put the ranks' parts together as ``<name>.jsonl`` and remove them. All ranks must have written theirs.

    Args:
        folder: Where the parts are.
        name: The evaluation's name.
        world_size: How many parts there are.
        order: The ids of all questions, in order.

    Raises:
        ValueError: A part is missing, or the parts do not hold exactly the questions of ``order``.
    """
    lines: dict[str, str] = {}
    for rank in range(world_size):
        part = _part(folder, name, rank)
        if not part.is_file():
            raise ValueError(f"{part} of rank {rank} is missing; the ranks must share the run's folder")
        for line in part.read_text(encoding="utf-8").split("\n")[:-1]:
            lines[json.loads(line)["id"]] = line
    if lines.keys() != set(order):
        raise ValueError(f"{folder}: the parts of {name!r} hold {len(lines)} questions where {len(order)} were asked")
    path = folder / f"{name}.jsonl"
    write_atomically(path, "".join(lines[question_id] + "\n" for question_id in order).encode())
    for rank in range(world_size):
        _part(folder, name, rank).unlink()
    return path


def bring(labels: Sequence[str], there: Path, here: Path) -> list[Path]:
    """Copy a run's samples to the run that goes on from it, whose history speaks of them.

    Args:
        labels: Their folders within a run's.
        there: The folder of the run before.
        here: That of this one, which may be the same; what it has already stays as it is.

    Returns:
        The folders that are not there to be copied.
    """
    gone = []
    for label in labels:
        if (here / label).exists():
            continue
        if (there / label).is_dir():
            shutil.copytree(there / label, here / label)
        else:
            gone.append(there / label)
    return gone


def _part(folder: Path, name: str, rank: int) -> Path:
    return folder / f".{name}.rank-{rank:05d}.jsonl"
