"""A run that goes on draws the random numbers that it would have drawn: those of dropout, above all."""

import random
import sys
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

KEY = "random_states"
"""Where a checkpoint has the states of all ranks, in their order."""


class RandomStates(Callback):
    """Keep the random states of every rank in checkpoints: those of torch, CUDA, python and numpy.

    They are tensors and plain types, so that a checkpoint is read without running anything in it. A run that goes on
    gets them back before its first batch, after all that may draw while it starts.

    With another number of ranks nothing can be exact: at the end of an epoch that is said, and within an epoch, where
    the batches still to come would be others than those left over, it is refused.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Gather the states on all ranks; one of them writes the file."""
        mine = random_states(pl_module.device)
        states: list[Any] = [mine] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, mine)
        checkpoint[KEY] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take this rank's states, to be set before the first batch.

        Raises:
            ValueError: Another number of ranks is to go on within an epoch, or the states are damaged.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        states = checkpoint.get(KEY, [])
        if not isinstance(states, list):
            raise ValueError(f"its {KEY} are damaged")
        now = trainer.world_size
        if not states:
            _say(trainer, "the checkpoint holds no random states: dropout draws others than it would have")
        elif len(states) != now:
            if _within_epoch(checkpoint):
                raise ValueError(
                    f"the checkpoint was saved within an epoch by {len(states)} processes, and {now} cannot go on with "
                    f"its batches: run {len(states)}, or take a checkpoint from the end of an epoch"
                )
            _say(
                trainer,
                f"the checkpoint was saved by {len(states)} processes and {now} go on: steps are of other batches, and "
                "dropout draws others, than they would have been",
            )
        else:
            self._waiting = states[trainer.global_rank]
            try_random_states(self._waiting)
            if pl_module.device.type == "cuda" and self._waiting["cuda"] is None:
                _say(trainer, "the checkpoint was saved without a GPU: dropout draws others than it would have")

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401 - as Lightning has it
        batch_idx: int,
    ) -> None:
        """Set the states before the first batch of a run that goes on."""
        if self._waiting is not None:
            set_random_states(self._waiting, pl_module.device)
            self._waiting = None


def random_states(device: torch.device) -> dict[str, Any]:
    """Return this process's random states as tensors and plain types.

    Args:
        device: The one that the process computes on.
    """
    version, python, gauss = random.getstate()
    kind, words, position, has_gauss, cached = np.random.get_state()
    assert kind == "MT19937", "the only one that numpy's global state can be of"
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": {"version": version, "state": torch.tensor(python), "gauss": gauss},
        "numpy": {
            "words": torch.from_numpy(np.asarray(words, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
    }


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Set this process's random states to what ``random_states`` returned."""
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
    random.setstate(_python(states["python"]))
    np.random.set_state(_numpy(states["numpy"]))


def try_random_states(states: Any) -> None:  # noqa: ANN401 - whatever a checkpoint has there
    """Try states on generators of their own, since those of the process are set when training has long begun.

    Raises:
        ValueError: They are not what ``random_states`` returned.
    """
    try:
        torch.Generator().set_state(states["torch"])
        random.Random().setstate(_python(states["python"]))
        np.random.RandomState().set_state(_numpy(states["numpy"]))
        sound = states["cuda"] is None or states["cuda"].dtype == torch.uint8
    except Exception as error:  # what a generator makes of anything
        raise ValueError(f"its {KEY} are damaged") from error
    if not sound:
        raise ValueError(f"its {KEY} are damaged")


def _python(state: dict[str, Any]) -> tuple[Any, ...]:
    return state["version"], tuple(state["state"].tolist()), state["gauss"]


def _numpy(state: dict[str, Any]) -> tuple[Any, ...]:
    words = state["words"].numpy().astype(np.uint32)
    return "MT19937", words, state["position"], state["has_gauss"], state["cached"]


def _within_epoch(checkpoint: dict[str, Any]) -> bool:
    """Whether batches of the checkpoint's epoch were still to come."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return progress["current"]["ready"] > 0 and not progress["is_last_batch"]


def _say(trainer: Trainer, line: str) -> None:
    if trainer.is_global_zero:
        sys.stderr.write(f"synthalign: {line}\n")
