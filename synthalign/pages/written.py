"""A page's file: there as a whole, or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Written(NamedTuple):
    """What came of it: the file, what it shows in one line, and what else its reader must know."""

    path: Path
    headline: str
    notes: list[str]


@contextmanager
def whole(out: Path, *causes: type[Exception]) -> Iterator[Path]:
    """Give a place to write a page to; at the end it becomes the file, and after an error nothing stays of it.

    Args:
        out: The file.
        causes: What else than an OSError says that the disk is at fault.

    Raises:
        RuntimeError: The disk is full, or the file cannot be written for another reason.
    """
    errors: tuple[type[Exception], ...] = (OSError, *causes)
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, out)
    except errors as error:
        raise RuntimeError(f"{out} cannot be written ({error}): make room, or name another place with --out") from error
    finally:
        if part.is_file():
            part.unlink()
