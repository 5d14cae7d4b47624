"""Names for what something is made from: recipes of parts, fingerprints of files, digests, seeds."""

import dataclasses
import hashlib
import inspect
import json
import os
from pathlib import Path
from typing import Any

RUN_ONLY = frozenset({"device", "base_url", "api_key_env", "max_concurrency", "timeout_s", "max_retries"})
"""Fields of a part that say where it runs, not what it makes."""

NEVER_PATHS = frozenset({"revision", "variant", "dtype"})
"""Fields that a folder of the same name in the working directory must not turn into its content."""

WHOLE_BYTES = 1 << 26
"""Files up to this size are fingerprinted whole."""

SAMPLE_BYTES, SAMPLE_STRIDE = 1 << 12, 1 << 20
"""Larger ones by this much of every so much: training changes a matrix throughout, and large models' are larger yet."""


def digest(value: Any) -> str:  # noqa: ANN401 - anything JSON can carry
    """Return 16 hexadecimal digits that name a JSON-able value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def seed_of(*key: str | int) -> int:
    """Derive a 63-bit seed from a key such as (seed, id, sample): equal keys give equal seeds, on every machine."""
    text = json.dumps(key, ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def recipe_of(part: Any) -> Any:  # noqa: ANN401 - parts are whatever fits a Protocol
    """Describe a part so that whatever changes its results changes the description, and a moved folder does not.

    Objects are described by class and constructor arguments, folders and files by their content.

    Raises:
        ValueError: An object does not keep its constructor's arguments under their own names, as dataclasses do, so
            that two settings of it could not be told apart.
    """
    if part is None or isinstance(part, bool | int | float):
        return part
    if isinstance(part, str | Path):
        # Not Path.exists: a chat template is too long for a file's name.
        return {"content": fingerprint(Path(part))} if os.path.exists(part) else str(part)
    if isinstance(part, dict):
        return {str(key): recipe_of(value) for key, value in part.items()}
    if isinstance(part, set | frozenset):
        return sorted((recipe_of(value) for value in part), key=digest)
    if isinstance(part, list | tuple) and not hasattr(part, "_fields"):
        return [recipe_of(value) for value in part]
    if inspect.isroutine(part) or isinstance(part, type):
        return {"name": f"{part.__module__}.{part.__qualname__}"}
    kind = type(part)
    settings = {name: getattr(part, name) for name in _settings(part) if name not in RUN_ONLY}
    described = {name: value if name in NEVER_PATHS else recipe_of(value) for name, value in settings.items()}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **described}


def _settings(part: Any) -> list[str]:  # noqa: ANN401
    """Name the constructor's arguments, which must all be attributes."""
    kind = type(part)
    if dataclasses.is_dataclass(part):
        return [field.name for field in dataclasses.fields(part) if field.init]
    names = list(inspect.signature(kind).parameters)
    if lost := [name for name in names if not hasattr(part, name)]:
        raise ValueError(
            f"{kind.__qualname__} does not keep its arguments {', '.join(lost)}: store each as an attribute of that "
            "name, so that results made with other settings can be told apart"
        )
    return names


def fingerprint(path: Path) -> str:
    """Name the content of a file, or of a folder's files and their names.

    Large files are sampled. Hidden ones are left out: downloads keep their dates in them.
    """
    names = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file()) if path.is_dir() else [Path()]
    content = hashlib.blake2b(digest_size=8)
    for name in names:
        if any(part.startswith(".") for part in name.parts):
            continue
        file = path / name
        size = file.stat().st_size
        content.update(f"{name.as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= WHOLE_BYTES:
                content.update(stream.read())
                continue
            for start in [*range(0, size - SAMPLE_BYTES, SAMPLE_STRIDE), size - SAMPLE_BYTES]:
                stream.seek(start)
                content.update(stream.read(SAMPLE_BYTES))
    return content.hexdigest()
