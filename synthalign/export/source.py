"""What is exported: the adapter, the model or a checkpoint, found in the folder of the run that made it."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from synthalign.tables.hub import gist

CONFIG = "config.yaml"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODEL = "model"
"""Folder in which SaveAdapter keeps a model that was trained whole."""


class Source(NamedTuple):
    """What is exported."""

    kind: Literal["adapter", "model", "checkpoint"]
    path: Path
    """The folder of the adapter or the model; the checkpoint's file."""

    run: Path
    """The run's folder."""

    text: str
    """Its configuration as it stands in the file."""

    config: dict[str, Any]

    def setting(self, *path: str) -> Any:  # noqa: ANN401 - whatever stands there
        """Return a setting of the run; None where there is none."""
        return at(self.config, *path)

    def policy(self, name: str) -> Any:  # noqa: ANN401
        """Return an argument of the run's DPOModule."""
        return self.setting("model", "init_args", name)


def at(value: Any, *path: str) -> Any:  # noqa: ANN401
    """Follow keys into nested dictionaries; None where one is not there."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def find(place: Path) -> Source:
    """Find what a run has trained.

    Args:
        place: The run's folder, its adapter's or its model's folder, or a checkpoint of it.

    Raises:
        ValueError: Nothing is there that could be exported; the message says what was looked for.
    """
    if not place.exists():
        raise ValueError(f"there is no {place}: name a run's folder, or a checkpoint in it")
    if place.is_file() and place.suffix != ".ckpt":
        raise ValueError(f"{place} is no checkpoint: name a run's folder, or a file {'*.ckpt'!r} in it")
    if place.is_dir() and (place / ".metadata").exists():
        raise ValueError(
            f"{place} is a sharded checkpoint, whose metadata is a pickle: export the run's adapter, or a checkpoint "
            "that is one file"
        )
    above = place.parent.parent if len(place.parts) > 2 else place.absolute().parent.parent
    homes = [place, place.parent] if place.is_dir() else [place.parent, above]
    run = next((home for home in homes if (home / CONFIG).is_file()), None)
    if run is None:
        raise ValueError(f"{place} is not of a run: there is no {CONFIG} in {' or '.join(map(str, homes))}")
    text, config = _read(run / CONFIG)
    if place.is_file():
        return Source("checkpoint", place, run, text, config)
    named = [run / name for name in _adapters(config)]
    for folder in named if place == run else [place]:
        if (folder / ADAPTER_CONFIG).is_file():
            return Source("adapter", folder, run, text, config)
        if (folder / "config.json").is_file():
            return Source("model", folder, run, text, config)
    raise ValueError(_nothing(place, run, named))


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {gist(error)}") from error
    if not isinstance(at(config, "model", "init_args", "policy"), str):
        raise ValueError(f"{path} is no run's configuration: it has no model.init_args.policy")
    return text, config


def _adapters(config: dict[str, Any]) -> list[str]:
    """Return the names of the folders that a run saves what it trains in."""
    callbacks = at(config, "trainer", "callbacks")
    saving = [
        at(one, "init_args", "name")
        for one in (callbacks if isinstance(callbacks, list) else [])
        if str(at(one, "class_path")).endswith("SaveAdapter")
    ]
    return [*dict.fromkeys(name for name in (*saving, "adapter") if isinstance(name, str)), MODEL]


def _nothing(place: Path, run: Path, named: list[Path]) -> str:
    if place != run:
        return f"{place} holds neither an adapter ({ADAPTER_CONFIG}) nor a model (config.json)"
    others = [
        beside.parent for beside in sorted(run.parent.glob(f"*/{CONFIG}")) if (beside.parent / "adapter").is_dir()
    ]
    found = sorted(run.glob("checkpoints/*.ckpt")) or others
    known = f"; did you mean {found[0]}?" if found else ": SaveAdapter writes it after every epoch of a fit"
    return f"{run} has no {' and no '.join(f'{folder.name}/' for folder in named)}{known}"
