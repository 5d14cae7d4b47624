"""The folder of an export: there as a whole, or not at all; it replaces an older export, and nothing else."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RECORD = "export.json"
"""In every export: what it was made from, and under ``files`` what belongs to it."""


def check_free(out: Path) -> None:
    """Refuse a place that holds anything but an older export.

    Raises:
        ValueError: It does.
    """
    if out.is_dir() and not out.is_symlink():
        found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
        if not (foreign := sorted(found - _recorded(out))):
            return
        what = f"{foreign[0]} in it is no part of an older export" if RECORD in found else "it is no older export"
    elif out.exists() or out.is_symlink():
        what = "it is no folder"
    else:
        return
    raise ValueError(f"{out} exists already, and {what}: name another folder, or remove it")


def _recorded(out: Path) -> set[str]:
    try:
        files = json.loads((out / RECORD).read_bytes())["files"]
        return {RECORD, *(str(name) for name in files)}
    except (OSError, ValueError, LookupError, TypeError):
        return set()


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes ``out`` at the end, or is removed.

    Raises:
        ValueError: As ``check_free``.
        RuntimeError: The disk does not take it. What was at ``out`` before is there still.
    """
    from safetensors import SafetensorError

    check_free(out)
    out = out.absolute()
    part = out.with_name(f".{out.name}.part")
    above = [folder for folder in part.parents if not folder.exists()]
    os.umask(mask := os.umask(0o077))  # there is no other way to read it
    mode = 0o666 & ~mask
    try:
        shutil.rmtree(part, ignore_errors=True)  # what a killed export left may be gigabytes
        part.mkdir(parents=True)
        yield part
        for path in [*part.rglob("*"), part]:
            if path.is_file():
                path.chmod(mode)  # safetensors come readable by their writer alone
            _sync(path)
        check_free(out)  # hours may have passed
        _replace(part, out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RuntimeError(f"{out} cannot be written ({reason}): nothing is left of it") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):  # there now, and not empty
            for folder in above:
                folder.rmdir()


def _replace(part: Path, out: Path) -> None:
    """Put a folder in the place of an older one, which comes back if that fails."""
    if not out.exists():
        os.replace(part, out)
    else:
        old = part.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(out, old)
        try:
            os.replace(part, out)
        except OSError:
            os.replace(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync(out.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
