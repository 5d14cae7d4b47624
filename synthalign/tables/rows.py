"""Rows of JSON, with the place of each to name in a message."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a JSON array of objects, or one object a line; give each with the place to name in a message.

    Raises:
        ValueError: The file is missing, malformed (the line is named), or holds something else than objects.
    """
    text = text_in(path)
    if text.lstrip().startswith("["):
        suspect = bool(_HALF.search(text))  # asked once: the text is that of all items
        for number, row in enumerate(_parsed(text, str(path), count_lines=True), 1):
            where = f"{path}, item {number}"
            yield where, _checked(row, where, suspect=suspect)
        return
    # Not splitlines: JSON's texts may hold U+2028 and other ends of lines that are none here.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_row(line, where)


def json_whole(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Read a file that is one JSON value.

    Raises:
        ValueError: The file is missing, or malformed (the line is named).
    """
    text = text_in(path)
    return _texts_only(_parsed(text, str(path), count_lines=True), str(path), suspect=bool(_HALF.search(text)))


def text_in(path: Path) -> str:
    """Read a text file.

    Raises:
        ValueError: It is missing, a folder, cannot be read, or is no UTF-8 text.
    """
    if not os.path.isfile(path):  # Path's own raises where a name is too long
        raise ValueError(f"{path} is a folder, not a file" if os.path.isdir(path) else f"no such file: {path}")
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None


def parse_row(text: str, where: str) -> dict[str, Any]:
    """Parse one row of JSON.

    Raises:
        ValueError: It is malformed, or something else than an object; ``where`` begins the message.
    """
    return _checked(_parsed(text, where), where, suspect=bool(_HALF.search(text)))


def _parsed(text: str, where: str, count_lines: bool = False) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if count_lines else ""
        raise ValueError(f"{where}{line}: malformed JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists without end
        raise ValueError(f"{where}: malformed JSON: {error}") from None


_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that is, or begins, a surrogate pair."""


def _checked(row: Any, where: str, *, suspect: bool) -> dict[str, Any]:  # noqa: ANN401
    """Return a row that is an object of text; ``suspect``: it was written with escapes that may be no text."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, found {type(row).__name__}")
    _texts_only(row, where, suspect=suspect)
    return row


def _texts_only(value: Any, where: str, *, suspect: bool) -> Any:  # noqa: ANN401
    """Return a value whose texts all are some; ``suspect``: it was written with escapes that may be no text."""
    try:
        if suspect:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: holds half of a surrogate pair (\\ud800 to \\udfff), which is no text") from None
    return value


def field(row: dict[str, Any], name: str, where: str) -> str:
    """Return a text field that must be there.

    Raises:
        ValueError: The field is absent or no text.
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name!r} must be text, found {value!r}")
    return value
