"""A run that goes on goes on from the best checkpoints of its earlier parts too."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from synthalign.training.checkpoints import plain, read


class BestCheckpoints(Callback):
    """Bring the best checkpoints so far into the folder of a run that goes on, and their scores to ModelCheckpoint.

    Every part of a run has a folder of its own, and where that is another one Lightning forgets what was the best: the
    first checkpoint after would be it. The files of the earlier part stay; here they get a second name, or a copy where
    the disk gives none.

    A checkpoint may have been saved between the last step of an epoch and its end, which a run that goes on leaves out.
    The checkpoints that the end of the epoch was to bring are then saved before the next one begins, but for those that
    monitor what only the validation left out would have told, which is said.
    """

    def __init__(self) -> None:
        self._owed = False  # the end of the epoch that the checkpoint's last step belongs to

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Change what ModelCheckpoint is about to be given."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        fit = checkpoint["loops"]["fit_loop"]
        epochs, batches = fit["epoch_progress"]["current"], fit["epoch_loop.batch_progress"]
        self._owed = batches["is_last_batch"] and epochs["processed"] < epochs["ready"]
        for callback in _keepers(trainer):
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if state is not None and callback.monitor is not None and state["dirpath"] != str(callback.dirpath):
                best = _bring(trainer, callback, state) if trainer.is_global_zero else None
                if best := trainer.strategy.broadcast(best):
                    state |= _ranked(best, callback.mode) | {"dirpath": callback.dirpath}
                    state.pop("last_model_path", None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the end of an epoch was to bring, after Evaluate has made up for its own share."""
        if not self._owed:
            return
        self._owed = False
        progress = trainer.fit_loop.epoch_progress
        counts = (progress.current, progress.total)
        for count in counts:
            count.completed -= 1  # as it is when an epoch ends
        for callback in _keepers(trainer):
            if callback.monitor in (None, "epoch", "step", *trainer.callback_metrics):
                callback.on_train_epoch_end(trainer, pl_module)
            elif trainer.is_global_zero:
                sys.stderr.write(f"synthalign: the last epoch has no {callback.monitor}: it cannot be the best one\n")
        for count in counts:
            count.completed += 1


def _keepers(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _bring(trainer: Trainer, callback: ModelCheckpoint, state: dict[str, Any]) -> dict[str, Tensor]:
    """Give the best files a place in the new folder, and return their scores by their new paths."""
    assert trainer.ckpt_path is not None and callback.dirpath is not None
    kept = state["best_k_models"]
    if callback.save_top_k < 0:  # all are kept where they are
        kept = {path: score for path, score in kept.items() if path == state["best_model_path"]}
    found = {}
    for path, score in kept.items():
        beside = Path(trainer.ckpt_path).parent / Path(path).name  # where a run's folder was moved
        old = next((one for one in (Path(path), beside) if _scored(one, callback.state_key, score)), None)
        if old is None:
            sys.stderr.write(f"synthalign: {path} is gone or was replaced: the best so far is chosen without it\n")
            continue
        new = Path(callback.dirpath) / old.name
        _place(old, new)
        found[str(new)] = score
    return found


def _scored(path: Path, key: str, score: Tensor) -> bool:
    """Whether a file is the checkpoint that had a score, and not one that came in its place."""
    with suppress(ValueError, LookupError, TypeError):
        saved = plain(path / "meta.pt") if path.is_dir() else read(path, checksums=False)
        told = saved["callbacks"][key]["best_k_models"]
        return any(Path(place).name == path.name and bool(value == score) for place, value in told.items())
    return False


def _place(old: Path, new: Path) -> None:
    part = new.with_name(f".{new.name}.part")
    new.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    if old.is_dir():  # of shards
        shutil.copytree(old, part, copy_function=_link)
    else:
        _link(old, part)
    os.replace(part, new)


def _link(old: str | Path, new: str | Path) -> None:
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def _ranked(best: dict[str, Tensor], mode: str) -> dict[str, Any]:
    """Return the state of a ModelCheckpoint that has these scores, by path."""
    order = sorted(best, key=lambda path: best[path].item(), reverse=mode == "max")
    return {
        "best_k_models": best,
        "best_model_path": order[0],
        "best_model_score": best[order[0]],
        "kth_best_model_path": order[-1],
        "kth_value": best[order[-1]],
    }
