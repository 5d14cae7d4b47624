"""What is in each image, as people have written it down: lists of objects, or COCO's instances."""

from pathlib import Path
from typing import Any

from synthalign.tables import field, json_rows, json_whole


def read_objects(file: Path) -> dict[str, list[str]]:
    """Read which objects are in which image; each object of an image once, in the order first seen.

    Args:
        file: JSON lines, or one JSON array, of ``{"image": "1.jpg", "objects": ["dog", "cup"]}``; or COCO's instances,
            one JSON object of ``images``, ``annotations`` and ``categories``. An image may have no objects.

    Returns:
        Objects by the image's name, in the file's order.

    Raises:
        ValueError: The file is malformed or empty, or an image stands in it twice; the message names the place.
    """
    coco = _coco(file)
    objects = _listed(file) if coco is None else _annotated(file, coco)
    if not objects:
        raise ValueError(f"{file}: no images")
    return {image: list(dict.fromkeys(names)) for image, names in objects.items()}


def _coco(file: Path) -> dict[str, Any] | None:
    try:
        whole = json_whole(file)
    except ValueError:
        return None  # lines, or unreadable: json_rows says where
    return whole if isinstance(whole, dict) and "annotations" in whole else None


def _listed(file: Path) -> dict[str, list[str]]:
    objects: dict[str, list[str]] = {}
    for where, row in json_rows(file):
        image, names = field(row, "image", where), row.get("objects")
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(f"{where}: 'objects' must be a list of names, found {names!r}")
        _add(objects, image, where)
        objects[image] += names
    return objects


def _annotated(file: Path, coco: dict[str, Any]) -> dict[str, list[str]]:
    objects: dict[str, list[str]] = {}
    files: dict[Any, str] = {}
    for where, row in _rows(file, coco, "images"):
        image = field(row, "file_name", where)
        _add(objects, image, where)
        files[_id(row, "id", where)] = image
    names = {_id(row, "id", where): field(row, "name", where) for where, row in _rows(file, coco, "categories")}
    for where, row in _rows(file, coco, "annotations"):
        image_id, category = _id(row, "image_id", where), _id(row, "category_id", where)
        if image_id not in files:
            raise ValueError(f"{where}: there is no image of the id {image_id!r}")
        if category not in names:
            raise ValueError(f"{where}: there is no category of the id {category!r}")
        objects[files[image_id]].append(names[category])
    return objects


def _rows(file: Path, coco: dict[str, Any], part: str) -> list[tuple[str, dict[str, Any]]]:
    rows = coco.get(part)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: {part!r} must be a list of objects, as in COCO's instances")
    return [(f"{file}, {part}, item {number}", row) for number, row in enumerate(rows, 1)]


def _id(row: dict[str, Any], name: str, where: str) -> int | str:
    value = row.get(name)
    if type(value) not in (int, str):
        raise ValueError(f"{where}: {name!r} must be a number or text, found {value!r}")
    return value  # type: ignore[return-value]


def _add(objects: dict[str, list[str]], image: str, where: str) -> None:
    if image in objects:
        raise ValueError(f"{where}: the image {image!r} stands twice; put all its objects into one row")
    objects[image] = []
