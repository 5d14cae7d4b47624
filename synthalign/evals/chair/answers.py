"""Captions that were saved by image, as CHAIR's own scripts take and write them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from synthalign.evals.answers import read_answers
from synthalign.tables import field, json_rows, json_whole
from synthalign.types import Reply

IDS = ("image_id", "image")
"""Fields that may name a caption's image."""

WRAPPED = ("imgToEval", "sentences")
"""Where a file that is one object holds its captions: the original reads the first and writes the second."""


def captions_by_image(file: Path) -> dict[str, Reply] | None:
    """Read captions by their images' ids, if that is how the file has them.

    Args:
        file: Rows of ``{"image_id": 42, "caption": "A dog."}`` or ``{"image": "a.jpg", "caption": "A dog."}``, as lines
            or as an array; or one object that has rows of ``image_id`` in ``imgToEval`` or ``sentences``.

    Returns:
        Captions by image, numbers as their digits; None where the first row names no image, or its question beside it.

    Raises:
        ValueError: The file is malformed, or an image has no caption or two.
    """
    if (rows := _wrapped(file)) is None:
        first = next((row for _, row in json_rows(file)), {})
        if not first.keys() & {*IDS} or "id" in first or "question_id" in first:
            return None
        return read_answers(file, ids=IDS)
    captions: dict[str, Reply] = {}
    for number, row in enumerate(rows, 1):
        where = f"{file}, caption {number}"
        if not isinstance(row, dict) or type(row.get("image_id")) not in (int, str):
            raise ValueError(f"{where}: no 'image_id', a number or text")
        if str(row["image_id"]) in captions:
            raise ValueError(f"{where}: a second caption of image {row['image_id']!r}; ids must differ")
        captions[str(row["image_id"])] = Reply(field(row, "caption", where))
    return captions


def meant(image_ids: Iterable[str], images: Sequence[PurePath]) -> dict[str, list[int]]:
    """Return the places of the images that each id may mean, none for a foreign one.

    An id is an image's name, with folders before it or without, or the number in a name such as COCO's; only where it
    is neither of any image, a name without its suffix. COCO numbers its images over all its splits:
    ``COCO_val2014_000000000042.jpg`` and ``000000000042.jpg`` are one.
    """
    exact: dict[str, list[int]] = {}
    stems: dict[str, list[int]] = {}
    for place, image in enumerate(images):
        coco = re.fullmatch(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.jpg", image.name)
        names = ["/".join(image.parts[start:]) for start in range(len(image.parts))]
        for name in [*names, str(int(coco[1]))] if coco else names:
            exact.setdefault(name, []).append(place)
        for name in names:
            stems.setdefault(name.removesuffix(image.suffix), []).append(place)
    return {image_id: exact.get(image_id) or stems.get(image_id, []) for image_id in image_ids}


def _wrapped(file: Path) -> list[Any] | None:
    try:
        whole = json_whole(file)
    except ValueError:
        return None  # lines, or unreadable: json_rows says where
    rows = next((whole[key] for key in WRAPPED if key in whole), None) if isinstance(whole, dict) else None
    return list(rows.values()) if isinstance(rows, dict) else rows if isinstance(rows, list) else None
