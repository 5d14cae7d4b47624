"""Checkpoints of runs as files: whole or absent when written, never run when read."""

import os
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from synthalign.training.ranks import started_by_first

SHARDED = ".metadata"
"""The file that tells a folder of shards: a pickle, which torch runs when it reads the shards."""

TRAINING_NEEDS = ("state_dict", "loops", "optimizer_states", "lr_schedulers")


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is whole on the disk; reads tensors only.

    Lightning's own writes into the system's temporary folder first, and the move from there is a copy, which can be cut
    short, wherever that is another file system.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ANN401 - as Lightning has it
    ) -> None:
        """Write a checkpoint that is whole or absent, whatever happens to the process or the machine.

        Raises:
            ValueError: The path is an address on the network.
            RuntimeError: The disk is full, or cannot be written for another reason.
        """
        if "://" in str(path):
            raise ValueError(f"checkpoint {path} cannot be written: checkpoints are files in folders")
        assert storage_options is None, "files have none"
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of a full disk
            with suppress(OSError):
                part.unlink()
            gist = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise RuntimeError(
                f"checkpoint {path} cannot be written ({gist}): mend that and go on from the one before"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint without running anything in it, whatever ``weights_only`` says.

        Raises:
            ValueError: It is not whole, no checkpoint, or wants to run code.
        """
        return read(Path(path), map_location=map_location)


def read(path: Path, *, map_location: Any = "cpu", checksums: bool = True) -> dict[str, Any]:  # noqa: ANN401 - torch's
    """Read a checkpoint of Lightning's, tensors and plain types; the tensors stay on the disk until they are used.

    Args:
        path: The file.
        map_location: Where its tensors go.
        checksums: Whether to compare the content with its checksums, once in a process. Where Lightning started this
            rank, the node's first has done so.

    Raises:
        ValueError: It is not whole, no checkpoint, or wants to run code.
    """
    saved = plain(path, map_location)
    if not isinstance(saved, dict) or not isinstance(saved.get("state_dict"), dict) or "global_step" not in saved:
        raise ValueError(f"{path} is no checkpoint of a run: it has no state_dict and global_step")
    if checksums and not started_by_first():  # torch takes the tensors as they come
        now = path.stat()
        if broken := _broken_member(path, now.st_size, now.st_mtime_ns):
            raise ValueError(f"checkpoint {path} cannot be read: it was damaged (in {broken})")
    if odd := _misfit(saved):
        raise ValueError(f"checkpoint {path} was damaged or changed: its {odd} is not what a run writes")
    return saved


KINDS = {
    "pytorch-lightning_version": str,
    "epoch": int,
    "global_step": int,
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}
"""What stands under a checkpoint's keys, where they are there; the first three always are."""

COUNTS = {"ready", "started", "processed", "completed"}
"""How the loops' progress names what it counts."""


def _misfit(saved: dict[str, Any]) -> str | None:
    """Name a part of a checkpoint that is not of its kind."""
    missing = [key for key in list(KINDS)[:3] if key not in saved]
    odd = [key for key, kind in KINDS.items() if key in saved and type(saved[key]) is not kind]
    if missing or odd:
        return [*missing, *odd][0]
    weights = [name for name, value in saved["state_dict"].items() if not _is_weight(value)]
    return next(iter([*weights, *_odd_counts(saved.get("loops", {}))]), None)


def _is_weight(value: Any) -> bool:  # noqa: ANN401 - whatever is there
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta


def _odd_counts(loops: Any, at: str = "loops") -> list[str]:  # noqa: ANN401 - whatever is there
    if isinstance(loops, dict):
        return [odd for key, value in loops.items() for odd in _odd_counts(value, f"{at}.{key}")]
    counts = at.rpartition(".")[2] in COUNTS
    return [at] if counts and (type(loops) is not int or loops < 0) else []


def plain(path: Path, map_location: Any = "cpu") -> Any:  # noqa: ANN401
    """Unpickle what needs nothing to be run.

    Args:
        path: The file.
        map_location: Where its tensors go.

    Raises:
        ValueError: It cannot be read, or wants to run code.
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # what a damaged file makes of the reader: zip, pickle, struct and assertion errors
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        if isinstance(error, OSError) and error.strerror:
            raise ValueError(f"checkpoint {path} cannot be read: {error.strerror}") from error
        if wish := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"checkpoint {path} is a pickle that wants to run {wish[1]}: refused, and nothing was run"
            ) from error
        raise ValueError(
            f"checkpoint {path} cannot be read: it was cut short or damaged, or is something else"
        ) from error


def check(path: Path, *, training: bool, trust_shards: bool = False) -> None:
    """Refuse a checkpoint that a run cannot begin with, before anything is loaded.

    Some strategies read checkpoints by ways of their own, not all of which are safe, so that all is checked here.

    Args:
        path: A file, or a folder of shards.
        training: Whether training is to go on, which takes more than weights.
        trust_shards: Whether to read a folder of shards.

    Raises:
        ValueError: It is not whole, no checkpoint, lacks what is needed, or wants to run code.
    """
    if path.is_dir():
        if not trust_shards:
            raise ValueError(
                f"checkpoint {path} is a folder of shards, whose {SHARDED} is a pickle: reading it can run code; "
                "if you trust who wrote it, add --trust_shards true"
            )
        return
    saved = read(path)
    if training and (missing := [key for key in TRAINING_NEEDS if key not in saved]):
        raise ValueError(
            f"checkpoint {path} holds weights only: it has no {missing[0]}, so no training can go on from it; "
            "leave save_weights_only of ModelCheckpoint off"
        )


@lru_cache
def _broken_member(path: Path, size: int, mtime_ns: int) -> str | None:
    """Name a part of the file whose content is not what was written; older formats have no checksums."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip()
    except Exception as error:  # what damage makes of the reader: zip, zlib and struct errors, and more
        return type(error).__name__
