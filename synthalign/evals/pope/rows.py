"""POPE's questions with their labels: the authors' files, and those of the same keys that people have made since."""

from pathlib import Path
from typing import NamedTuple

from synthalign.tables import field, json_rows


class PopeRow(NamedTuple):
    """One question of a split; ``image`` is the name that the source gives it, ``number`` its id within the split."""

    where: str
    number: int | str
    image: str
    text: str
    label: str


def rows_in(file: Path, split: str) -> list[PopeRow]:
    """Read a split, as JSON lines (the authors' COCO files) or one JSON array (their A-OKVQA and GQA files).

    Raises:
        ValueError: The file is malformed or empty, or a row is not as it should be; the message names it.
    """
    rows = []
    for where, row in json_rows(file):
        number, label = row.get("question_id"), row.get("label")
        if type(number) not in (int, str):
            raise ValueError(f"{where}: 'question_id' must be a number or text, found {number!r}")
        if label is None:
            raise ValueError(f"{where}: no 'label'; is {file.name} a question file without its key?")
        if label not in ("yes", "no"):
            raise ValueError(f"{where}: 'label' must be 'yes' or 'no', found {label!r}")
        rows.append(PopeRow(where, number, field(row, "image", where), field(row, "text", where), label))  # type: ignore[arg-type]
    if not rows:
        raise ValueError(f"{file}: no questions for the split {split!r}")
    return rows


def check_ids(rows: list[PopeRow], split: str) -> None:
    """Refuse a split in which an id stands twice.

    Raises:
        ValueError: One does; the message names the second.
    """
    seen = set()
    for row in rows:
        if str(row.number) in seen:
            raise ValueError(
                f"{row.where}: question_id {row.number!r} stands twice in the split {split!r}; ids must differ"
            )
        seen.add(str(row.number))
