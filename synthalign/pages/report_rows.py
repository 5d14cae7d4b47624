"""Joins what the model said at each evaluation, question by question, and says which answers a page can hold."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synthalign.pages.report_run import Run

RIGHT, WRONG, UNJUDGED, ABSENT = "1", "0", "?", "-"

NO_ANSWER = {"id", "image", "kind", "question", "truth", "yes_margin", "correct"}
"""Keys of a saved row that do not belong to the answer, or that the page keeps elsewhere."""

SHARES = (4000, 2000, 1000, 500, 250, 100, 50, 20)
"""How many answers of one kind of change a page may show of an evaluation, from what is wanted down."""

SEED = 0
"""Of the drawing of answers that are shown where not all can be."""


class Row(NamedTuple):
    """One question, and what the model said to it each time."""

    eval: str
    id: str
    image: str
    kind: str
    question: str
    truth: Any
    verdicts: str
    """One letter for each time: 1 right, 0 wrong, ? not judged, - not asked."""

    answers: list[dict[str, Any]]
    """The different ones: ``reply``, ``truncated``, and whatever else the verdict says."""

    at: list[int | None]
    """Which of the answers was given each time."""

    margins: list[float | None]
    """Log-odds of yes against no, each time; in nats."""

    silent: bool
    """Whether the saved answers say nothing of right and wrong, not even that nobody judged them."""

    @property
    def change(self) -> str:
        """From the first time to the last: two letters."""
        return self.verdicts[0] + self.verdicts[-1]


class Rows(NamedTuple):
    """The answers of a run."""

    rows: list[Row]
    """All that the page shows."""

    patterns: dict[str, dict[str, Counter[str]]]
    """Of all answers, shown or not: evaluation, kind, verdicts, and how many."""

    silent: list[str]
    """Evaluations whose saved answers do not say whether they are right, as those of older runs."""

    times: list[int]
    """Which of the sittings the page compares."""

    notes: list[str]


def read_rows(run: Run, max_bytes: float) -> Rows:
    """Read the answers of a run, and choose which to show.

    All that were not right every time are shown if they fit. If they do not, only the first and the last evaluation
    are compared; if that is not enough, of each evaluation and each way an answer can change so many are drawn.

    Args:
        run: What to read.
        max_bytes: Room for the texts.

    Raises:
        ValueError: A file of answers is damaged; the message names the line.
    """
    times, notes = list(range(len(run.sittings))), []
    joined = list(_joined(run, times))
    if len(times) > 2 and _size(_worth(joined)) > max_bytes:
        times = [0, len(times) - 1]
        joined = list(_joined(run, times))
        notes.append(
            f"The replies of all {len(run.sittings)} evaluations take too much room: only the first and the last are "
            "compared. A larger --max-mb shows all."
        )
    patterns: dict[str, dict[str, Counter[str]]] = {}
    for row in joined:
        patterns.setdefault(row.eval, {}).setdefault(row.kind, Counter())[row.verdicts] += 1
    if missing := sorted({one.samples.name for one in run.sittings if not one.samples.is_dir()}):
        notes.append(f"There are no replies of {', '.join(missing)}: the folder is gone.")
    worth = shown = _worth(joined)
    for share in SHARES:
        if _size(shown) <= max_bytes:
            break
        shown = _drawn(worth, share)
    if len(shown) < len(worth):
        notes.append(
            f"{len(shown)} of the {len(worth)} answers that were not right every time are shown: of each evaluation "
            "and each kind of change a sample, drawn at random. All counts are of all answers."
        )
    silent = sorted({row.eval for row in joined if row.silent})
    return Rows(shown, patterns, silent, times, notes)


def _joined(run: Run, times: Sequence[int]) -> Iterator[Row]:
    """Join the answers by id, in the order of the first file that has them."""
    for name in run.evals:
        rows: dict[str, Row] = {}
        for place, time in enumerate(times):
            path = run.sittings[time].samples / f"{name}.jsonl"
            for said in _read(path):
                row = rows.get(said["id"])
                if row is not None and len(row.verdicts) > place:
                    raise ValueError(f"{path}: the id {said['id']!r} stands twice")
                if row is None:
                    shared = {key: said.get(key) for key in ("image", "kind", "question")}
                    texts = {key: "" if value is None else str(value) for key, value in shared.items()}
                    row = Row(
                        eval=name,
                        id=said["id"],
                        **texts,
                        truth=said.get("truth"),
                        verdicts="",
                        answers=[],
                        at=[],
                        margins=[],
                        silent="correct" not in said,
                    )
                rows[said["id"]] = _with(row, said, place)
        for row in rows.values():
            yield _filled(row, len(times))


def _with(row: Row, said: dict[str, Any], place: int) -> Row:
    """Add what was said at one time."""
    row = _filled(row, place)
    answer = {key: value for key, value in said.items() if key not in NO_ANSWER}
    if answer not in row.answers:
        row.answers.append(answer)
    row.at.append(row.answers.index(answer))
    row.margins.append(said.get("yes_margin"))
    return row._replace(verdicts=row.verdicts + _letter(said.get("correct")))


def _letter(correct: object) -> str:
    return RIGHT if correct is True else WRONG if correct is False else UNJUDGED


def _filled(row: Row, length: int) -> Row:
    """Say of the times before ``length`` that are missing that the question was not asked."""
    missing = length - len(row.verdicts)
    row.at.extend([None] * missing)
    row.margins.extend([None] * missing)
    return row._replace(verdicts=row.verdicts + ABSENT * missing)


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: malformed JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise ValueError(f"{path}, line {number}: expected an object with an 'id' that is text")
        yield row


def _worth(rows: Sequence[Row]) -> list[Row]:
    """Leave out what was right every time."""
    return [row for row in rows if set(row.verdicts) != {RIGHT}]


def _size(rows: Sequence[Row]) -> int:
    """Estimate the bytes that rows take on the page."""
    return sum(len(json.dumps([row.question, row.truth, row.answers, row.at, row.margins])) + 200 for row in rows)


def _drawn(rows: Sequence[Row], share: int) -> list[Row]:
    """Draw so many rows of each evaluation and each change, by the seed alone; keep the order."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault((row.eval, row.change), []).append(number)
    kept = set()
    for numbers in groups.values():
        kept |= set(random.Random(SEED).sample(numbers, min(share, len(numbers))))
    return [row for number, row in enumerate(rows) if number in kept]
