"""Loading other people's weights: from a folder or the hub, never running their code, with errors one can act on."""

import os
from pathlib import Path
from typing import Any, Literal

import torch

DType = Literal["auto", "float32", "bfloat16", "float16", "float64"]


def load(kind: Any, model: str, *, revision: str | None = None, **settings: Any) -> Any:  # noqa: ANN401
    """Call ``kind.from_pretrained`` on a folder or hub id.

    Remote code is never run: classes that could take it are told not to, and weights are read as safetensors.

    Args:
        kind: A class with ``from_pretrained``.
        model: Folder, or id on the Hugging Face hub.
        revision: Commit, tag or branch on the hub.
        **settings: Passed on.

    Raises:
        ValueError: There is no such folder or model, or it is not what ``kind`` reads.
    """
    check_folder(model)
    if revision is not None:
        settings["revision"] = revision
    try:
        return kind.from_pretrained(model, **settings)
    except (OSError, ValueError, KeyError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"model {model!r} cannot be loaded as {kind.__name__}: {reason}") from error


def check_folder(model: str) -> None:
    """Refuse a path to nowhere before the hub is asked for it.

    Raises:
        ValueError: ``model`` looks like a path, and nothing is there.
    """
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") != 1 or os.sep != "/"
    if Path(model).is_dir() or not (looks_like_path or model.partition("/")[0] in _folders_here()):
        return
    raise ValueError(f"no model folder at {model!r} (seen from {Path.cwd()}), and it is no hub id of the form owner/name")


def resolve_device(device: str) -> torch.device:
    """Turn ``auto`` into the first CUDA device, or the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def resolve_dtype(dtype: DType) -> torch.dtype | Literal["auto"]:
    """Turn a name into a torch dtype; ``auto`` stays, and means the dtype the weights were saved in."""
    return "auto" if dtype == "auto" else getattr(torch, dtype)


def free_cuda() -> None:
    """Give cached memory back to the device after a model was dropped."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _folders_here() -> set[str]:
    return {entry.name for entry in os.scandir() if entry.is_dir()}
