"""Captions that were saved by image, as CHAIR's own scripts take and write them."""

import re
from pathlib import Path
from typing import Any

from synthalign.evals.answers import read_answers
from synthalign.tables import field, json_rows, json_whole
from synthalign.types import Reply

WRAPPED = ("imgToEval", "sentences")
"""Where a file that is one object holds its captions: the original reads the first and writes the second."""


def captions_by_image(file: Path) -> dict[str, Reply] | None:
    """Read captions by their images' ids, if that is how the file has them.

    Args:
        file: Rows of ``{"image_id": 42, "caption": "A dog."}``, as lines or as an array; or one object that has such
            rows in ``imgToEval`` or ``sentences``.

    Returns:
        Captions by ``image_id``, numbers as their digits; None where the first row has no ``image_id`` or names its
        question beside it.

    Raises:
        ValueError: The file is malformed, or an image has no caption or two.
    """
    if (rows := _wrapped(file)) is None:
        first = next((row for _, row in json_rows(file)), {})
        if "image_id" not in first or "id" in first or "question_id" in first:
            return None
        return read_answers(file, ids=("image_id",))
    captions: dict[str, Reply] = {}
    for number, row in enumerate(rows, 1):
        where = f"{file}, caption {number}"
        if not isinstance(row, dict) or type(row.get("image_id")) not in (int, str):
            raise ValueError(f"{where}: no 'image_id', a number or text")
        if str(row["image_id"]) in captions:
            raise ValueError(f"{where}: a second caption of image {row['image_id']!r}; ids must differ")
        captions[str(row["image_id"])] = Reply(field(row, "caption", where))
    return captions


def ids_of(image: str) -> list[str]:
    """Return what an ``image_id`` may be for an image: its name, and the number in a name such as COCO's.

    COCO numbers its images over all its splits: ``COCO_val2014_000000000042.jpg`` and ``000000000042.jpg`` are one.
    """
    coco = re.fullmatch(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.jpg", image)
    return [image, str(int(coco[1]))] if coco else [image]


def _wrapped(file: Path) -> list[Any] | None:
    try:
        whole = json_whole(file)
    except ValueError:
        return None  # lines, or unreadable: json_rows says where
    rows = next((whole[key] for key in WRAPPED if key in whole), None) if isinstance(whole, dict) else None
    return list(rows.values()) if isinstance(rows, dict) else rows if isinstance(rows, list) else None
