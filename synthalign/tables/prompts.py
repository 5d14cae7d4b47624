"""The prompts file, which may be longer than memory: rows are read from it when they are asked for."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from synthalign.tables.columns import IMAGE_TOKEN
from synthalign.tables.rows import field, json_rows, parse_row


class PromptRow(NamedTuple):
    """What to draw, and what to ask about the image."""

    id: str
    prompt: str
    questions: tuple[str, ...]


class PromptFile(Sequence[PromptRow]):
    """The rows of a prompts file, read from the disk when indexed; some 16 bytes of each stay in memory.

    The file holds one object a line, {"id", "prompt", "question"} or {"id", "prompt", "questions": [...]}. It may also
    be one JSON array of them, which is then held in memory whole.

    Args:
        path: The file. All of it is read once, and every row checked.

    Raises:
        ValueError: A row is malformed, lacks a field, or repeats an id; the message names the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("q")
        self._array: list[PromptRow] = []
        ids = array("Q")
        for start, where, row in self._scan():
            prompt = _prompt(where, row)
            if start is None:
                self._array.append(prompt)
            else:
                self._starts.append(start)
            ids.append(_hash(prompt.id))
        if not ids:
            raise ValueError(f"{path}: no prompts")
        self._refuse_repeated(ids)

    def __len__(self) -> int:
        return len(self._array) or len(self._starts)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - only integers are ever asked for
        return next(self.rows([index]))

    def __iter__(self) -> Iterator[PromptRow]:
        return self.rows(range(len(self)))

    def rows(self, positions: Iterable[int]) -> Iterator[PromptRow]:
        """Read the rows at some positions, in the order given.

        Raises:
            ValueError: The file has changed since it was opened, or is gone.
        """
        if self._array:
            yield from (self._array[position] for position in positions)
            return
        with self._stream() as stream:
            for position in positions:
                stream.seek(self._starts[position])
                try:
                    where = f"{self.path}, byte {self._starts[position]}"
                    row = _prompt(where, parse_row(stream.readline().decode("utf-8-sig"), where))
                except ValueError as error:
                    raise ValueError(f"{self.path} has changed since this run began ({error}): run again") from None
                yield row

    def part(self, positions: np.ndarray) -> "PromptPart":
        """Return the rows at some positions as a sequence, read anew each time it is gone through."""
        return PromptPart(self, positions)

    def numbers(self, name: Callable[[PromptRow], int]) -> np.ndarray:
        """Give each row a number of 64 bits, (n,)."""
        return np.fromiter((name(row) for row in self), np.uint64, len(self))

    def _scan(self) -> Iterator[tuple[int | None, str, dict[str, Any]]]:
        """Go through the file: where each row starts (None in an array), the place to name, the row."""
        if not self.path.is_file():
            raise ValueError(f"no such file: {self.path}")
        with self._stream() as stream:
            if stream.read(256).decode("utf-8-sig", "ignore").lstrip().startswith("["):
                yield from ((None, where, row) for where, row in json_rows(self.path))
                return
            stream.seek(0)
            start = 0
            for number, line in enumerate(stream, 1):
                where = f"{self.path}, line {number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(f"{self.path}: not UTF-8 text at byte {start + error.start}") from None
                if text.strip():
                    yield start, where, parse_row(text, where)
                start += len(line)

    def _stream(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read ({error.strerror})") from None

    def _refuse_repeated(self, ids: "array[int]") -> None:
        hashes = np.frombuffer(ids, np.uint64)
        order = np.argsort(hashes, kind="stable")
        later = np.sort(order[1:][np.diff(hashes[order]) == 0])
        if not len(later):
            return
        first = next(row.id for row in self.rows(later[:1].tolist()))
        places = (where for start, where, row in self._scan() if row["id"] == first)
        next(places)
        raise ValueError(f"{next(places)}: id {first!r} stands twice; rows are joined by id")


class PromptPart(Sequence[PromptRow]):
    """Some rows of a prompts file, read when they are gone through."""

    def __init__(self, file: PromptFile, positions: np.ndarray) -> None:
        self.file, self.positions = file, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
        return self.file[int(self.positions[index])]

    def __iter__(self) -> Iterator[PromptRow]:
        return self.file.rows(self.positions.tolist())


def read_prompts(path: Path) -> list[PromptRow]:
    """Read a prompts file whole.

    Raises:
        ValueError: As ``PromptFile``.
    """
    return list(PromptFile(path))


def _prompt(where: str, row: dict[str, Any]) -> PromptRow:
    questions = row.get("questions", [row.get("question")])
    if not isinstance(questions, list) or not questions or not all(isinstance(q, str) for q in questions):
        raise ValueError(f"{where}: expected 'question' (text) or 'questions' (a list of texts)")
    prompt = PromptRow(field(row, "id", where), field(row, "prompt", where), tuple(questions))
    if not all(text.strip() for text in (prompt.prompt, *prompt.questions)):
        raise ValueError(f"{where}: the prompt or a question is empty")
    if any(IMAGE_TOKEN in question for question in questions):
        raise ValueError(f"{where}: leave {IMAGE_TOKEN!r} out of the question; the model's template puts it there")
    return prompt


def _hash(row_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest(), "big")
