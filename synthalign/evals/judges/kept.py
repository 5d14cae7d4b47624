"""Judgements on disk, so that no answer is judged twice: not in the next epoch, not in the next run.

A file per judgement, whole or absent, whose name is the digest of all that the judgement depends on. So a killed run
leaves nothing half-written, and several processes share a folder without asking each other. That two of them judge the
same answer at the same time is prevented by a lock on one byte of one file for each name, which dies with its process.
"""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, lockf
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from synthalign.evals.mmhal.ratings import verdict_of
from synthalign.store import digest, recipe_of, write_atomically
from synthalign.types import Judge, Judgement

LOCKS = ".locks"
BUSY = {errno.EACCES, errno.EAGAIN}
SHOWN = 60
"""Characters of a question or an answer that a message shows."""


class Row(NamedTuple):
    """What is judged."""

    contents: list[str]
    question: str
    reference: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class KeptJudgements:
    """A Judge that asks another one only for what it has not judged before.

    A judgement is kept under all that it depends on: the judge's settings and what it says about itself, what is in
    the image, question, reference and answer. Any change of these asks again. Where the judge fails, what it said
    before is kept, and the answer that it fails on is named.

    Args:
        inner: Rates what is not there yet. Of one's own making, it keeps its constructor's arguments as attributes,
            so that settings can be told apart; when its code changes, its ``judge_revision`` must.
        folder: Where judgements are kept; any number of runs and ranks may share it.
        rows_at_once: Answers given to the judge in one call, and so lost at most if the process is killed.
    """

    inner: Judge
    folder: Path
    rows_at_once: int = 16

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        if self.rows_at_once < 1:
            raise ValueError(f"rows_at_once must be >= 1, got {self.rows_at_once}")
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; judgements are kept in a folder")

    def about(self) -> dict[str, str]:
        """Name the judge itself: that its judgements are kept changes none of them."""
        return self.inner.about()

    def judge(
        self,
        contents: Sequence[Sequence[str]],
        questions: Sequence[str],
        references: Sequence[str],
        answers: Sequence[str],
    ) -> list[Judgement]:
        """Rate each answer, or recall its rating. ``contents`` lists what is in each image.

        Raises:
            ValueError: The judge gave no rating from 0 to 6, or what is kept is damaged.
            RuntimeError: The judge failed, or the disk.
        """
        rows = [
            Row(list(listed), *rest) for listed, *rest in zip(contents, questions, references, answers, strict=True)
        ]
        names = [digest([self._by, *row]) for row in rows]
        named = dict(zip(names, rows, strict=True))
        known = self._known(named)
        missing = [name for name in named if name not in known]
        for start in range(0, len(missing), self.rows_at_once):
            known |= self._judged({name: named[name] for name in missing[start : start + self.rows_at_once]})
        return [known[name] for name in names]

    def release(self) -> None:
        """Free the memory of the judge's weights."""
        self.inner.release()

    @cached_property
    def _by(self) -> str:
        return digest([recipe_of(self.inner), self.inner.about()])

    def _judged(self, rows: dict[str, Row]) -> dict[str, Judgement]:
        """Judge rows that were not there yet; those that another process is judging now are waited for."""
        with _locks(self.folder) as locks:
            mine = {name: row for name, row in rows.items() if _lock(locks, name, wait=False)}
            known = self._known(mine)  # it may have finished since
            known |= self._ask({name: row for name, row in mine.items() if name not in known})
            _unlock(locks, mine)
            # With no lock of one's own, one at a time: so two processes never wait for each other.
            for name in (name for name in rows if name not in mine):
                _lock(locks, name, wait=True)
                known |= self._known([name]) or self._ask({name: rows[name]})
                _unlock(locks, [name])
        return known

    def _ask(self, rows: dict[str, Row]) -> dict[str, Judgement]:
        """Let the judge rate rows, and keep what it says: one by one where it fails, to learn on which."""
        if not rows:
            return {}
        try:
            judgements = self.inner.judge(*([*column] for column in zip(*rows.values(), strict=True)))
            if len(judgements) != len(rows):
                raise ValueError(f"{len(judgements)} judgements of {len(rows)} answers")
            for row, judgement in zip(rows.values(), judgements, strict=True):
                verdict_of(judgement, _short(row.question))
        except Exception as error:
            if len(rows) > 1:
                return {name: one for name, row in rows.items() for one in self._ask({name: row}).values()}
            (row,) = rows.values()
            kind = ValueError if isinstance(error, ValueError) else RuntimeError
            raise kind(
                f"the judge failed on the answer {_short(row.answer)!r} to {_short(row.question)!r}: "
                f"{type(error).__name__}: {error}; what it said before is kept in {self.folder}"
            ) from error
        for (name, row), judgement in zip(rows.items(), judgements, strict=True):
            self._keep(name, row, judgement)
        return dict(zip(rows, judgements, strict=True))

    def _keep(self, name: str, row: Row, judgement: Judgement) -> None:
        said = {"score": judgement.score, "parsed": judgement.parsed, "judgement": judgement.text}
        content = self.inner.about() | row._asdict() | said
        write_atomically(self._file(name), (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())

    def _known(self, names: Iterable[str]) -> dict[str, Judgement]:
        """Return the judgements that are kept under these names."""
        known = {}
        for name in names:
            file = self._file(name)
            try:
                row = json.loads(file.read_bytes())
                known[name] = Judgement(row["score"], row["judgement"], row["parsed"])
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{file} is damaged: delete it, and its answer is judged again") from None
        return known

    def _file(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.json"


@contextmanager
def _locks(folder: Path) -> Iterator[int]:
    """Open the file whose bytes are locked and never written; gives its descriptor."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCKS, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RuntimeError(f"{folder} cannot be written ({error.strerror}): mend that and run again") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # and with it every lock on it


def _lock(descriptor: int, name: str, *, wait: bool) -> bool:
    """Take a name for oneself; False if another process has it."""
    try:
        lockf(descriptor, LOCK_EX if wait else LOCK_EX | LOCK_NB, 1, _byte(name))
    except OSError as error:
        return error.errno not in BUSY  # on a disk without locks an answer may be judged twice, at worst
    return True


def _unlock(descriptor: int, names: Iterable[str]) -> None:
    for name in names:
        with suppress(OSError):
            lockf(descriptor, LOCK_UN, 1, _byte(name))


def _byte(name: str) -> int:
    return int(name, 16) >> 2  # a file may have 2**63 bytes


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
