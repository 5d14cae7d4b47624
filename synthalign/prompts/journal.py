"""The record of what a writer was asked and what became of it, from which a run that was killed goes on.

A text file of one JSON object a line: first what the prompts are made from, then each chunk of attempts as a whole.
Lines are only ever appended, and reach the disk before the next chunk is asked for; a last line that was cut short is
cut off. Replies that were dropped stay in it, with the reason.
"""

import json
import os
from collections import Counter
from contextlib import suppress
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import IO, Any

from synthalign.tables import json_rows

NAME = "attempts.jsonl"


class Journal:
    """What has been written so far in a folder.

    Args:
        folder: The folder; it is made when there is something to record.
        recipe: What the prompts are made from; JSON-able.

    Raises:
        ValueError: What the folder holds was made from something else.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        self.path = folder / NAME
        self.rows: list[dict[str, Any]] = []
        self.attempts: Counter[str] = Counter()  # by category
        self.dropped: Counter[str] = Counter()  # by reason
        self._size = self._cut_torn_line(recipe)  # bytes that this object knows of
        chunks = json_rows(self.path) if self.path.exists() else iter(())
        where, begun = next(chunks, ("", None))
        self._to_begin_with = [recipe] if begun is None else []
        if begun is not None and begun != recipe:
            changed = ", ".join(sorted(key for key in begun | recipe if begun.get(key) != recipe.get(key)))
            raise ValueError(f"{where}: these prompts were made with other settings ({changed}): name another folder")
        for _, chunk in chunks:
            self._count(chunk)

    def add(self, rows: list[dict[str, Any]], dropped: list[dict[str, Any]], attempts: Counter[str]) -> None:
        """Record a chunk: the rows that came of it, what was dropped, and how many attempts each category took.

        Raises:
            RuntimeError: The disk is full, or cannot be written for another reason; or somebody else has written.
        """
        chunk = {"rows": rows, "dropped": dropped, "attempts": dict(attempts)}
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in [*self._to_begin_with, chunk]]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                _lock(stream)
                if stream.seek(0, os.SEEK_END) != self._size:
                    raise RuntimeError(
                        f"{self.path}: another run has written to it since this one began; let one end, and run again"
                    )
                stream.write("".join(lines).encode())
                stream.flush()
                os.fsync(stream.fileno())
                self._size = stream.tell()
        except OSError as error:
            raise RuntimeError(
                f"{self.path} cannot be written ({error.strerror or error}): mend that and run again; "
                "what it holds stays"
            ) from error
        self._to_begin_with = []
        self._count(chunk)

    def _count(self, chunk: dict[str, Any]) -> None:
        self.rows += chunk["rows"]
        self.attempts.update(chunk["attempts"])
        self.dropped.update(one["reason"] for one in chunk["dropped"])

    def _cut_torn_line(self, recipe: dict[str, Any]) -> int:
        """Cut off a last line without an end, if the file is a journal of this recipe; return its size then, bytes."""
        if not self.path.is_file():
            return 0
        with self.path.open("rb+") as stream:
            _lock(stream)  # a line that is just being written is not torn
            content = stream.read()
            if not content.endswith(b"\n") and _begins_with(content, recipe):
                stream.truncate(content.rfind(b"\n") + 1)
            return stream.seek(0, os.SEEK_END)


def _begins_with(content: bytes, recipe: dict[str, Any]) -> bool:
    """Whether the first line is a recipe, or as much of it as was written."""
    first, end, _ = content.partition(b"\n")
    if not end:
        return json.dumps(recipe, ensure_ascii=False).encode().startswith(first)
    try:
        return bool(json.loads(first) == recipe)
    except ValueError:
        return False


def _lock(stream: IO[bytes]) -> None:
    """Have a file to oneself until it is closed, where its disk knows locks."""
    with suppress(OSError):
        flock(stream, LOCK_EX)


def check_folder(out: Path) -> None:
    """Refuse a file, or the name of one, where a folder is to be written.

    Raises:
        ValueError: It is one.
    """
    if out.suffix == ".jsonl" or (out.exists() and not out.is_dir()):
        raise ValueError(f"{out} must be a folder: prompts.jsonl is written into it")
