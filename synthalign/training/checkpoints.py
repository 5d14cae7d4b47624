"""Checkpoints of runs as files: whole or absent when written, never run when read, and found in a run's folder."""

import os
import re
import sys
import traceback
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

SHARDED = ".metadata"
"""The file that tells a folder of shards: a pickle, which torch runs when it reads the shards."""

TRAINING_NEEDS = ("state_dict", "loops", "optimizer_states", "lr_schedulers")


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is whole on the disk; reads tensors only.

    Lightning's own writes into the system's temporary folder first, and the move from there is a copy, which can be cut
    short, wherever that is another file system. Addresses such as ``s3://…`` are left to it.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ANN401 - as Lightning has it
    ) -> None:
        """Write a checkpoint that is whole or absent, whatever happens to the process or the machine.

        Raises:
            RuntimeError: The disk is full, or cannot be written for another reason.
        """
        if _is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
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
        if _is_remote(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read(Path(path), map_location=map_location)


def _is_remote(path: str | Path) -> bool:
    return "://" in str(path)


def read(path: Path, *, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:  # noqa: ANN401 - torch's
    """Read a checkpoint of Lightning's: tensors and plain types.

    Args:
        path: The file.
        map_location: Where its tensors go.
        mmap: Leave the tensors on the disk until they are used, and unchecked.

    Raises:
        ValueError: It is not whole, no checkpoint, or wants to run code.
    """
    saved = _plain(path, map_location, mmap=mmap)
    if not isinstance(saved, dict) or not isinstance(saved.get("state_dict"), dict) or "global_step" not in saved:
        raise ValueError(f"{path} is no checkpoint of a run: it has no state_dict and global_step")
    if not mmap and (broken := _broken_member(path)):  # torch takes the tensors as they come
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


def refusal(error: Exception) -> str | None:
    """Say in one line why Lightning, or torch for it, could not restore a checkpoint; None of any other error."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame.name.lstrip("_") for frame in frames if frame.filename.endswith("checkpoint_connector.py")]
    restoring = any(name.startswith(("restore", "resume")) for name in theirs)
    if not restoring or isinstance(error, torch.OutOfMemoryError | MemoryError):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def _plain(path: Path, map_location: Any = "cpu", *, mmap: bool = False) -> Any:  # noqa: ANN401
    """Unpickle what needs nothing to be run."""
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
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


def _broken_member(path: Path) -> str | None:
    """Name a part of the file whose content is not what was written; older formats have no checksums."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip()
    except Exception as error:  # what damage makes of the reader: zip, zlib and struct errors, and more
        return type(error).__name__


class _Found(NamedTuple):
    """A checkpoint of a folder, by its steps; at the end of an epoch one comes after those within it."""

    step: int
    epochs: int
    path: Path


def resolve(given: str, root: Path, *, training: bool, trust_shards: bool = False) -> Path | None:
    """Return the checkpoint that ``--ckpt_path`` means.

    Args:
        given: A file; a run's folder or one of checkpoints, which means its newest whole one; or ``last``, which means
            the newest whole one of the newest fit in ``root`` that has any.
        root: ``default_root_dir`` of the trainer.
        training: Whether training is to go on.
        trust_shards: Whether to read folders of shards.

    Returns:
        The checkpoint; None where ``last`` finds none, so that the command that begins a run can be the one that
        goes on with it.

    Raises:
        ValueError: There is none, or it is not fit; see ``check``.
    """
    if given == "last":
        for run in sorted(_runs(root), reverse=True):
            if (found := newest(run[1], training=training, trust_shards=trust_shards)) is not None:
                return found
        _say(f"--ckpt_path last: no run in {root} has a checkpoint yet, so this one starts from the beginning")
        return None
    path = Path(given)
    if not path.exists():
        raise ValueError(f"--ckpt_path: no checkpoint at {given}; it takes a file, a run's folder, or last")
    if path.is_file() or _is_sharded(path):
        check(path, training=training, trust_shards=trust_shards)
        return path
    if (chosen := newest(path, training=training, trust_shards=trust_shards)) is None:
        raise ValueError(f"--ckpt_path: no whole checkpoint in {given}")
    return chosen


def newest(folder: Path, *, training: bool, trust_shards: bool = False) -> Path | None:
    """Return a folder's newest whole checkpoint, by steps taken; those that are not fit are named on the terminal.

    Args:
        folder: Of a run, or of checkpoints.
        training: Whether training is to go on.
        trust_shards: Whether to read folders of shards.
    """
    inner = folder / "checkpoints"
    paths = sorted((inner if inner.is_dir() else folder).glob("*.ckpt"))
    found, reasons = [], []
    for path in paths:
        try:
            found.append(_place(path, trust_shards=trust_shards))
        except ValueError as error:
            reasons.append(str(error))
    chosen = None
    for one in sorted(found, reverse=True):
        try:
            check(one.path, training=training, trust_shards=trust_shards)
        except ValueError as error:
            reasons.append(str(error))
        else:
            chosen = one.path
            break
    for reason in reasons:
        _say(f"passed over: {reason}")
    return chosen


def _place(path: Path, *, trust_shards: bool) -> _Found:
    if _is_sharded(path):
        check(path, training=False, trust_shards=trust_shards)
        saved = _plain(path / "meta.pt")
    else:
        saved = read(path, mmap=True)
    try:
        epochs = int(saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        return _Found(int(saved["global_step"]), epochs, path)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no checkpoint of a run: it does not say how far that was") from error


def _is_sharded(path: Path) -> bool:
    return path.is_dir() and (path / SHARDED).is_file()


def _runs(root: Path) -> list[tuple[int, Path]]:
    """Return the folders of fits in ``root`` by number: fit, fit-2, fit-3."""
    named = ((re.fullmatch(r"fit(?:-(\d+))?", path.name), path) for path in root.glob("fit*"))
    return [(int(match[1] or 1), path) for match, path in named if match and path.is_dir()]


@rank_zero_only
def _say(line: str) -> None:
    sys.stderr.write(f"synthalign: {line}\n")
