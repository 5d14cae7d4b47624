"""The checkpoint that ``--ckpt_path`` means, and what is said of it."""

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch.utilities import rank_zero_only

from synthalign.training.checkpoints import SHARDED, check, plain, read


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
    found = _chosen(given, root, training=training, trust_shards=trust_shards)
    if found is None:
        _say(f"--ckpt_path last: no run in {root} has a checkpoint yet, so this one starts from the beginning")
        return None
    step = _place(found, trust_shards=trust_shards).step
    _say(f"{'going on' if training else 'weights are'} from {found} (step {step})")
    return found


def _chosen(given: str, root: Path, *, training: bool, trust_shards: bool) -> Path | None:
    if given == "last":
        runs = (folder for _, folder in sorted(_runs(root), reverse=True))
        chosen = (newest(folder, training=training, trust_shards=trust_shards) for folder in runs)
        return next((path for path in chosen if path is not None), None)
    path = Path(given)
    if not path.exists():
        raise ValueError(f"--ckpt_path: no checkpoint at {given}; it takes a file, a run's folder, or last")
    if path.is_file() or _is_sharded(path):
        check(path, training=training, trust_shards=trust_shards)
        return path
    if (found := newest(path, training=training, trust_shards=trust_shards)) is None:
        raise ValueError(f"--ckpt_path: no whole checkpoint in {given}")
    return found


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
        saved = plain(path / "meta.pt")
    else:
        saved = read(path, checksums=False)
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


def tell_changes(checkpoint: Path, settings: dict[str, Any]) -> None:
    """Say on the terminal which settings are not those of the run that saved a checkpoint, and what that means.

    Args:
        checkpoint: Perhaps in a run's folder, which then has the run's config.
        settings: Of the run that goes on.

    Raises:
        ValueError: The optimizer's differ, for which the state in the checkpoint would be taken.
    """
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    try:
        before = yaml.safe_load((folder / "config.yaml").read_bytes())
    except (OSError, yaml.YAMLError):
        before = None
    if not isinstance(before, dict):
        _say(f"no config of its run lies in {folder}, so that whether settings have changed is not known")
    elif changed := _differing(before, settings):
        if theirs := [place for place in changed if place.startswith("model.init_args.optimizer")]:
            raise ValueError(
                f"--ckpt_path goes on with the optimizer that {checkpoint} holds, and {theirs[0]} is another here: "
                f"leave it as it was, or begin anew from the adapter (--model.init_args.adapter {folder / 'adapter'})"
            )
        more = f" and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else ""
        planned = "; a schedule runs to the new end" if {"trainer.max_epochs", "trainer.max_steps"} & {*changed} else ""
        _say(f"settings are not those of its run: {', '.join(changed[:MAX_NAMED])}{more}{planned}")


MAX_NAMED = 8
"""Changed settings that are named."""


def _differing(before: Any, now: Any, at: str = "") -> list[str]:  # noqa: ANN401 - whatever stands there
    """Name the places that both have, with other values."""
    if isinstance(before, dict) and isinstance(now, dict):
        both = [key for key in now if key in before]
        return [place for key in both for place in _differing(before[key], now[key], f"{at}.{key}" if at else key)]
    return [] if before == now else [at]


@rank_zero_only
def _say(line: str) -> None:
    sys.stderr.write(f"synthalign: {line}\n")
