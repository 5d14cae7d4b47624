"""What a run has trained, read from its files: numbers alone, no pickle is ever run."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthalign.export.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Source
from synthalign.tables.hub import gist

INSIDE = "network."
"""Put by DPOModule before the names of the policy's weights."""

PICKLES = ("adapter_model.bin", "adapter_model.pt")


class Trained(NamedTuple):
    """What a run has trained."""

    adapter: dict[str, Any] | None
    """The adapter's configuration, as PEFT has it; None where the model itself was trained."""

    tensors: dict[str, Tensor]
    """By PEFT's names in files; by the model's own where it was trained itself."""

    step: int | None = None
    """Optimizer steps taken; None where the files do not say."""


def read(source: Source) -> Trained:
    """Read an adapter's folder, or a checkpoint.

    Raises:
        ValueError: It is damaged, holds something else, or is a pickle that wants to run code.
    """
    if source.kind == "adapter":
        trained = Trained(_adapter_config(source.path / ADAPTER_CONFIG), _safetensors(source.path))
    else:
        trained = _checkpoint(source)
    for name, tensor in trained.tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{source.path}: {name} holds values that are no finite numbers: this run has failed")
    return trained


def does_nothing(trained: Trained) -> bool:
    """Whether an adapter is as fresh as it was made: all of its second factors are zero."""
    factors = [tensor for name, tensor in trained.tensors.items() if "lora_B" in name or "lora_embedding_B" in name]
    return bool(factors) and not any(bool(factor.any()) for factor in factors)


def _adapter_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {gist(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ValueError(f"{path} is no adapter's configuration: it has no peft_type")
    if config.get("megatron_config"):
        raise ValueError(f"{path} has a megatron_config, which makes PEFT import a module that it names: refused")
    return config


def _safetensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        pickles = [name for name in PICKLES if (folder / name).exists()]
        also = f"; {pickles[0]} is a pickle, and is not read" if pickles else ""
        raise ValueError(f"{folder} has no {ADAPTER_WEIGHTS}{also}")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {gist(error)}") from error
    if not tensors:
        raise ValueError(f"{path} holds no weights")
    return tensors


def _checkpoint(source: Source) -> Trained:
    saved = _unpickled(source.path)
    state = saved.get("state_dict")
    own = isinstance(state, dict) and all(
        isinstance(name, str) and name.startswith(INSIDE) and isinstance(tensor, Tensor)
        for name, tensor in state.items()
    )
    if not state or not own:
        raise ValueError(f"{source.path} is no checkpoint of a DPOModule: it has no weights named {INSIDE}…")
    tensors = {name.removeprefix(INSIDE): tensor for name, tensor in state.items()}
    step = saved.get("global_step")
    step = step if isinstance(step, int) else None
    if not any(".default" in name for name in tensors):
        return Trained(None, tensors, step)
    return Trained(_lora_config(source), {_peft_name(name): tensor for name, tensor in tensors.items()}, step)


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=(mapped := zipfile.is_zipfile(path)))
    except Exception as error:  # what a damaged file makes of the reader: zip, pickle, struct and assertion errors
        if wish := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(f"{path} is a pickle that wants to run {wish[1]}: refused, and nothing was run") from error
        raise ValueError(f"{path} cannot be read as a checkpoint: it is damaged, or something else") from error
    if not isinstance(saved, dict):
        raise ValueError(f"{path} is no checkpoint: it holds a {type(saved).__name__}")
    if mapped and (broken := _broken(path)):
        raise ValueError(f"{path} cannot be read as a checkpoint: it is damaged (in {broken})")
    return saved


def _broken(path: Path) -> str | None:
    """Name a part of a file whose content is not what was written: what is mapped into memory goes unchecked."""
    with zipfile.ZipFile(path) as file:
        return file.testzip()


def _peft_name(name: str) -> str:
    """Turn the name of a part of an adapter in memory into that in PEFT's files, which leave out the adapter's own."""
    return re.sub(r"(lora_magnitude_vector)\.default\.weight$", r"\1", name).replace(".default", "")


def _lora_config(source: Source) -> dict[str, Any]:
    """Return the configuration of a checkpoint's adapter: saved beside it, or that of the run's settings."""
    from synthalign.export.source import find

    try:
        beside = find(source.run)
    except ValueError:  # nothing was saved but checkpoints
        beside = None
    if beside is not None and beside.kind == "adapter":
        return _adapter_config(beside.path / ADAPTER_CONFIG)
    begun = source.policy("adapter")
    if isinstance(begun, str):
        if not (file := Path(begun) / ADAPTER_CONFIG).is_file():
            raise ValueError(f"{source.path} goes on from the adapter {begun!r}, whose {ADAPTER_CONFIG} is not here")
        return _adapter_config(file)
    lora = source.policy("lora")
    if not isinstance(lora, dict) or lora.keys() != {"r", "alpha", "dropout", "target_modules"}:
        raise ValueError(f"{source.run}: its configuration has no model.init_args.lora that {source.path.name} needs")
    from peft import LoraConfig

    config = LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=lora["target_modules"],
        bias="none",
        inference_mode=True,
    )
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
