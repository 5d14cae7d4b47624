"""A whole model in safetensors: the base with an adapter in its weights, or with those that were trained."""

import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from synthalign.export.base import Base, copy_small_files, folder_of
from synthalign.export.trained import Trained
from synthalign.vlm import load_adapter, load_vlm
from synthalign.weights import DType


def write_merged(
    trained: Trained,
    adapter: Path | None,
    base: Base,
    folder: Path,
    *,
    dtype: DType,
    shard_gb: float,
    template: str | None,
) -> bool:
    """Write a model that needs neither its base nor PEFT any more.

    Args:
        trained: What was trained.
        adapter: Its folder, if it is an adapter.
        base: The base.
        folder: Where to.
        dtype: Type of the weights; auto: as the base's were saved.
        shard_gb: Largest size of a file, GB.
        template: Chat template that takes the place of the base's.

    Returns:
        Whether all weights have the names and shapes of the base's.

    Raises:
        ValueError: The base cannot be loaded, is quantised, or is not that of the adapter; or a weight leaves the range
            of its type.
    """
    network = load_vlm(base.model, revision=base.asked, dtype=dtype)
    commit = getattr(network.config, "_commit_hash", None)
    if getattr(network.config, "quantization_config", None) is not None:
        raise ValueError(f"base {base.model!r} is quantised itself: name the unquantised one with --base")
    network = _laid_in(network, trained, base) if adapter is None else merge(network, adapter)
    _refuse_nonfinite(network)
    network.generation_config = type(network.generation_config)()  # the base's is copied; some cannot be saved again
    network.save_pretrained(folder, max_shard_size=int(shard_gb * 1e9))
    for name in ("config.json", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    copy_small_files(base, folder, commit)
    if dtype != "auto":
        _tell_dtype(folder / "config.json", dtype)
    if template is not None:
        write_template(folder, template)
    return _same_layout(folder, folder_of(base, commit))


def _same_layout(folder: Path, base: Path) -> bool:
    """Whether the weights of a model have the names and shapes of its base's."""
    from safetensors import safe_open

    def layout(place: Path) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for path in place.glob("model*.safetensors"):
            with safe_open(path, "pt") as file:
                names = file.keys()
                found |= {name: file.get_slice(name).get_shape() for name in names}
        return found

    return layout(folder) == layout(base)


def merge(network: Any, adapter: Path) -> Any:  # noqa: ANN401
    """Lay an adapter into a model's weights, for good: computed in at least float32, then rounded once."""
    network = load_adapter(network, str(adapter))
    layers = [part for part in network.modules() if hasattr(part, "get_base_layer") and hasattr(part, "merge")]
    if not layers:
        raise ValueError(f"an adapter of the kind {next(iter(network.peft_config.values())).peft_type} has no merge")
    for layer in tqdm(layers, desc="merging", unit="layer", delay=2, leave=False):
        own = layer.get_base_layer()
        dtype = own.weight.dtype
        if dtype.itemsize < 4:
            own.float()
        layer.merge()
        own.to(dtype)
    return network.unload()


def _laid_in(network: Any, trained: Trained, base: Base) -> Any:  # noqa: ANN401
    own = network.state_dict()  # tied weights under all of their names, as a checkpoint with the base has them
    for name, tensor in trained.tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ValueError(
                f"the checkpoint is not of {base.model!r}, which has no {name} of shape {tuple(tensor.shape)}"
            )
        own[name].copy_(tensor)
    return network


def _refuse_nonfinite(network: Any) -> None:  # noqa: ANN401
    for name, weight in network.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"{name} leaves the range of {weight.dtype}: give --dtype bfloat16 or float32")


def _tell_dtype(config: Path, dtype: str) -> None:
    """Set the type of the weights where a configuration names it, its parts' included."""

    def told(value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, dict):
            return value
        return {key: dtype if key in ("dtype", "torch_dtype") else told(one) for key, one in value.items()}

    whole = told(json.loads(config.read_bytes()))
    if not {"dtype", "torch_dtype"} & whole.keys():
        whole["dtype"] = dtype
    config.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_template(folder: Path, template: str) -> None:
    """Make a template that of a processor and its tokenizer, wherever they look for it first."""
    (folder / "chat_template.json").unlink(missing_ok=True)
    for name in ("tokenizer_config.json", "processor_config.json"):
        if (path := folder / name).is_file():
            settings = json.loads(path.read_bytes())
            if settings.pop("chat_template", None) is not None:
                path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
