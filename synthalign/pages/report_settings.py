"""Reads from a run's config.yaml the settings that a reader asks for first."""

from collections.abc import Mapping
from typing import Any

import yaml


def in_brief(config: str, said: Mapping[str, str]) -> dict[str, str]:
    """Name the settings that a reader asks for first; none of a config that cannot be read.

    Args:
        config: The text of config.yaml.
        said: What is known better from elsewhere, and left out here.
    """
    try:
        whole = yaml.safe_load(config)
    except yaml.YAMLError:
        return {}
    model = "model/init_args"
    told = {
        "Policy": _at(whole, f"{model}/policy"),
        "Loss": _part(_at(whole, f"{model}/loss")),
        "LoRA": _lora(_at(whole, f"{model}/lora")),
        "Optimizer": _optimizer(_at(whole, f"{model}/optimizer")),
        "Schedule": _part(_at(whole, f"{model}/schedule")),
        "Epochs": _at(whole, "trainer/max_epochs"),
        "Batch": _at(whole, "data/init_args/batch_size"),
        "Pairs": _at(whole, "data/init_args/pairs") or _at(whole, "data/init_args/synthesis/store"),
        "Seed": _at(whole, "seed_everything"),
    }
    plain = {name: str(value) for name, value in told.items() if isinstance(value, str | int | float)}
    return {name: value for name, value in plain.items() if name not in said}


def _at(value: Any, path: str) -> Any:  # noqa: ANN401 - whatever the file holds
    for name in path.split("/"):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _name(part: object) -> str | None:
    """Return the last word of a part's class_path."""
    path = _at(part, "class_path")
    return path.rpartition(".")[2] if isinstance(path, str) else None


def _part(part: object) -> str | None:
    name, args = _name(part), _at(part, "init_args")
    if name is None or not isinstance(args, dict):
        return name
    plain = (f"{key}={value}" for key, value in args.items() if isinstance(value, str | int | float))
    return f"{name}({', '.join(plain)})"


def _optimizer(part: object) -> str | None:
    name, lr = _name(part), _at(part, "init_args/lr")
    return f"{name}, lr {lr:g}" if name and isinstance(lr, int | float) else name


def _lora(found: object) -> str | None:
    if not isinstance(found, dict):
        return None
    return ", ".join(f"{name} {found[name]}" for name in ("r", "alpha") if name in found)
