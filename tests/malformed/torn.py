"""Damage to a file that needs no knowledge of what is in it."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[Any], Any]
"""How an example draws from one of hypothesis's strategies."""

WAYS = (
    "cut short",
    "flipped",
    "a hole",
    "a tail",
    "a mark before",
    "twice",
    "UTF-16",
    "Latin-1",
    "empty",
    "noise",
    "a folder",
    "absent",
    "its own link",
    "a link to nowhere",
    "another file",
    "no permission",
)
NOISE = b"\x00\xff\xfe{}[]()\"'\\:,\n\r\t -9eE.\x80\xc3PK\x03\x04\x89PNG<html>%PDF"


def integer(draw: Draw, low: int, high: int) -> int:
    """Draw a whole number, both ends included."""
    return int(draw(st.integers(low, high)))


def one_of(draw: Draw, things: Sequence[Any]) -> Any:
    """Draw one of several things."""
    return things[integer(draw, 0, len(things) - 1)]


def tear(path: Path, draw: Draw, others: list[Path]) -> str:
    """Damage a file.

    Args:
        path: The file.
        draw: As hypothesis gives it.
        others: Files of other kinds, one of which may come in its place.

    Returns:
        What was done.
    """
    way = one_of(draw, WAYS)
    content = path.read_bytes()
    place = integer(draw, 0, max(0, len(content) - 1))
    if way == "cut short":
        path.write_bytes(content[:place])
    elif way == "flipped":
        spoilt = bytearray(content)
        for _ in range(integer(draw, 1, 4)):
            spoilt[integer(draw, 0, len(content) - 1)] ^= 1 << integer(draw, 0, 7)
        path.write_bytes(spoilt)
    elif way == "a hole":
        path.write_bytes(content[:place] + content[place + integer(draw, 1, 64) :])
    elif way == "a tail":
        path.write_bytes(content + NOISE)
    elif way == "a mark before":
        path.write_bytes(b"\xef\xbb\xbf" + content)
    elif way == "twice":
        path.write_bytes(content + content)
    elif way == "UTF-16":
        path.write_bytes(content.decode("latin-1").encode("utf-16"))
    elif way == "Latin-1":
        path.write_bytes(content[:place] + "é".encode("latin-1") + content[place:])
    elif way == "empty":
        path.write_bytes(b"")
    elif way == "noise":
        path.write_bytes(bytes(NOISE[integer(draw, 0, len(NOISE) - 1)] for _ in range(integer(draw, 1, 40))))
    elif way == "no permission":
        path.chmod(0)
    else:
        path.unlink()
        if way == "a folder":
            path.mkdir()
        elif way == "its own link":
            os.symlink(path.name, path)
        elif way == "a link to nowhere":
            os.symlink("nowhere", path)
        elif way == "another file":
            shutil.copy(one_of(draw, others), path)
    return way
