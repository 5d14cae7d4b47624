"""What a run has trained, read from its files: numbers alone, no pickle is ever run."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthalign.checkpoints import INDEX, WHOLE, read_pickle, weight_map
from synthalign.export.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, Source, find
from synthalign.tables.hub import gist
from synthalign.vlm.responder import check_adapter

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


Adapters = Callable[..., Any]
"""What a run's ``model.init_args.lora`` are the arguments of, and whose ``config()`` is PEFT's."""


def read(source: Source, lora: Adapters | None = None) -> Trained:
    """Read an adapter's folder, or a checkpoint.

    Args:
        source: Where.
        lora: Makes the configuration of a checkpoint's adapter where none was saved beside it.

    Raises:
        ValueError: It is damaged, holds something else, or is a pickle that wants to run code.
    """
    if source.kind == "adapter":
        trained = Trained(_adapter_config(source.path / ADAPTER_CONFIG), _safetensors(source.path))
    else:
        trained = _checkpoint(source, lora)
    for name, tensor in trained.tensors.items():
        _refuse_nonfinite(source.path, name, tensor)
    return trained


def _refuse_nonfinite(path: Path, name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{path}: {name} holds values that are no finite numbers: this run has failed")


def weights_of(model: Path) -> list[Path]:
    """Return the files of a whole model's weights, every number of which was read.

    Args:
        model: A folder in which transformers saved it.

    Returns:
        Its safetensors, and their index if they are several.

    Raises:
        ValueError: One is missing or damaged, or a weight is, or is no finite number.
    """
    from safetensors import SafetensorError, safe_open

    there = {path.name for path in model.glob("*.safetensors")}
    listed = weight_map(model / INDEX) if (model / INDEX).is_file() else None
    files = sorted({WHOLE} if listed is None else set(listed.values()))
    found = {}
    for name in files:
        if name not in there:
            raise ValueError(f"{model} has no {name}: the model in it is not whole")
        try:
            with safe_open(model / name, "pt") as file:
                for weight in file.keys():
                    found[weight] = name
                    _refuse_nonfinite(model / name, weight, file.get_tensor(weight))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{model / name} cannot be read: {gist(error)}") from error
    if listed is not None and (odd := sorted(listed.items() ^ found.items())):
        raise ValueError(f"{model}: {odd[0][0]} is not where {INDEX} says: the model in it is not whole")
    return [model / name for name in [*files, *([INDEX] if listed else [])]]


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
    try:
        check_adapter(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
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


def _checkpoint(source: Source, lora: Adapters | None) -> Trained:
    saved = read_pickle(source.path)
    state = saved.get("state_dict") if isinstance(saved, dict) else None
    own = isinstance(state, dict) and all(
        isinstance(name, str) and name.startswith(INSIDE) and isinstance(tensor, Tensor)
        for name, tensor in state.items()
    )
    if not state or not own:
        raise ValueError(f"{source.path} is no checkpoint of a DPOModule: it has no weights named {INSIDE}…")
    tensors = {name.removeprefix(INSIDE): tensor for name, tensor in state.items()}
    step = saved.get("global_step")
    step = step if isinstance(step, int) else None
    # With checkpoint_base the frozen weights are there, too.
    adapter = {_peft_name(name): tensor for name, tensor in tensors.items() if ".default" in name}
    return Trained(_configuration(source, lora), adapter, step) if adapter else Trained(None, tensors, step)


def _peft_name(name: str) -> str:
    """Turn the name of a part of an adapter in memory into that in PEFT's files, which leave out the adapter's own."""
    name = re.sub(r"(lora_magnitude_vector)\.default\.weight$", r"\1", name)
    return name.replace(".modules_to_save.default", "").replace(".default", "")


def _configuration(source: Source, lora: Adapters | None) -> dict[str, Any]:
    """Return the configuration of a checkpoint's adapter: saved beside it, or that of the run's settings."""
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
    try:
        assert lora is not None, "a checkpoint without a saved adapter needs it"
        config = lora(**source.policy("lora")).config().to_dict()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{source.run / CONFIG}: its model.init_args.lora, which {source.path.name} needs, makes no adapter: "
            f"{gist(error)}"
        ) from error
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
