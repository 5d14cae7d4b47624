"""Files of other people's weights: found in a folder or on the hub, and pickles turned into safetensors.

A pickle is a program. One is read by a reader that makes tensors and nothing else, once; from then on the safetensors
written from it are read in its place.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""A model's weights in one file; or in several, and the file that says which name is where."""


def find_file(model: str, name: str, *, revision: str | None = None) -> Path:
    """Return where a file of a model is, fetched from the hub unless ``model`` is a folder.

    Args:
        model: Folder, or id on the Hugging Face hub.
        name: Of the file.
        revision: Commit, tag or branch on the hub.

    Raises:
        ValueError: There is no such file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if Path(model).is_dir():
        if not (path := Path(model) / name).is_file():
            raise ValueError(f"model {model!r} has no file {name!r}")
        return path
    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise ValueError(f"file {name!r} of model {model!r} cannot be had: {_gist(error)}") from error


def read_file(model: str, name: str, *, revision: str | None = None) -> dict[str, Tensor]:
    """Read a file of named tensors onto the CPU: safetensors, or a pickle of a dictionary of tensors.

    The dictionary may lie under ``state_dict``. A pickle is converted first, and found again by its content. What it
    becomes lies hidden beside it, so that the folder counts as unchanged; in the user's cache folder if it comes from
    the hub or its folder is read-only.

    Args:
        model: Folder, or id on the Hugging Face hub.
        name: Of the file.
        revision: Commit, tag or branch on the hub.

    Raises:
        ValueError: There is no such file, it is damaged or holds something else, or it wants to run code.
        RuntimeError: The converted file cannot be written.
    """
    path = find_file(model, name, revision=revision)
    return _load(path if path.suffix == ".safetensors" else _converted(path, hide_beside=Path(model).is_dir()))


def read_named(model: str, names: list[str], *, revision: str | None = None) -> dict[str, Tensor]:
    """Read single tensors of a transformers model's safetensors, be those one file or several.

    Raises:
        ValueError: A name or a file is missing, or a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        listed = find_file(model, INDEX, revision=revision)
    except ValueError:  # the weights are in one file
        files = dict.fromkeys(names, WHOLE)
    else:
        files = weight_map(listed)
    found = {}
    for name in names:
        if name not in files:
            raise ValueError(f"model {model!r} lacks weight {name!r}: its {INDEX} does not list it")
        path = find_file(model, files[name], revision=revision)
        try:
            with safe_open(path, "pt") as file:
                found[name] = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"weight {name!r} of model {model!r} cannot be read: {_gist(error)}") from error
    return found


def weight_map(index: Path) -> dict[str, str]:
    """Read which file holds which weight of a model that is in several.

    Raises:
        ValueError: The list is damaged.
    """
    try:
        files = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{index} cannot be read as the list of a model's weights: {error!r}") from error
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{index} cannot be read as the list of a model's weights: it names no files")
    return files


def assemble(
    kind: Any,  # noqa: ANN401 - a model class of transformers
    config: Any,  # noqa: ANN401
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    dtype: torch.dtype | str,
    **settings: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Make a transformers model of tensors under its own names, in eval mode, on the CPU.

    Args:
        kind: The model class.
        config: Its configuration.
        tensors: The weights; what the model has no place for is left out.
        source: Where they come from, for messages.
        dtype: Type of the weights; auto: as they are.
        **settings: Passed on to the class.

    Raises:
        ValueError: Weights are missing, or of another shape.
    """
    try:
        network, report = kind.from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=dtype, output_loading_info=True, **settings
        )
    except RuntimeError as error:
        raise ValueError(f"{source} holds no weights of this {kind.__name__}: {_gist(error)}") from error
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{source} lacks weights of {kind.__name__}: {missing[0]}{more}")
    return network.eval()


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {_gist(error)}") from error


def _converted(path: Path, *, hide_beside: bool) -> Path:
    """Return the safetensors made of a pickle, making them where they are not there yet."""
    name = f"{path.stem}-{_digest(path)}.safetensors"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synthalign" / "checkpoints" / name
    places = [path.with_name(f".{name}"), cache] if hide_beside else [cache]
    for place in places:
        if place.is_file():
            return place
    from safetensors import SafetensorError

    tensors = _unpickled(path)
    for place in places:
        try:
            _write(place, tensors)
        except (OSError, SafetensorError) as error:
            refused = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
            if refused and place != places[-1]:
                continue
            raise RuntimeError(
                f"the safetensors made of {path} cannot be written to {place}: {_gist(error)}"
            ) from error
        print(f"synthalign: {path} is a pickle: from now on {place} is read in its place", file=sys.stderr)
        return place
    raise AssertionError("the last place is written to, or raises")


def _digest(path: Path) -> str:
    content = hashlib.blake2b(digest_size=8)
    with path.open("rb") as stream:
        while block := stream.read(1 << 24):
            content.update(block)
    return content.hexdigest()


def read_pickle(path: Path) -> Any:  # noqa: ANN401 - whatever it holds
    """Read a pickle of tensors and plain types onto the CPU, without running anything in it.

    Raises:
        ValueError: It is damaged, something else, or wants to run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # what a damaged file makes of the reader: zip, pickle, struct and assertion errors
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        if name := wish(error):
            raise ValueError(
                f"{path} is a pickle that wants to run {name}: refused, and nothing was run; "
                "a checkpoint of tensors alone is read, and safetensors are"
            ) from error
        raise ValueError(f"{path} cannot be read as a checkpoint of torch: it is damaged, or something else") from error
    if part := torn(path):
        raise ValueError(f"{path} cannot be read as a checkpoint of torch: it is damaged (in {part})")
    return saved


def wish(error: BaseException) -> str | None:
    """Name what a pickle wants to run, where that is why torch refused to read it."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return named[1] if named else None


def torn(path: Path) -> str | None:
    """Name a part of a checkpoint whose content is not what was written, which torch does not look at.

    Formats older than the archive have no checksums: of them nothing is named.
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip()
    except Exception as error:  # what damage makes of the reader: zip, zlib and struct errors, and more
        return type(error).__name__


def _unpickled(path: Path) -> dict[str, Tensor]:
    saved = read_pickle(path)
    if isinstance(saved, Mapping):
        saved = saved.get("state_dict", saved)
    if not isinstance(saved, Mapping) or not saved:
        raise ValueError(f"{path} holds no dictionary of tensors")
    if odd := [key for key, value in saved.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path} holds no dictionary of tensors: {odd[0]!r} is a {type(saved[odd[0]]).__name__}")
    if strange := [key for key, value in saved.items() if not (isinstance(key, str) and _is_plain(value))]:
        raise ValueError(
            f"{path} holds {strange[0]!r}, which safetensors cannot: a name and a plain dense tensor are needed"
        )
    return dict(saved)


def _is_plain(tensor: Tensor) -> bool:
    """Whether safetensors can hold a tensor: dense, of numbers as they are, and there."""
    odd = tensor.is_quantized or tensor.is_nested or tensor.is_meta or tensor.dtype == torch.complex128
    return tensor.layout == torch.strided and not odd


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors that are whole or absent."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        part.touch()  # where that is refused, it says why: safetensors have an error of their own without a number
        # Cloned: safetensors refuse tensors that share their memory.
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, part)
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _gist(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
