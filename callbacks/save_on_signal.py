"""A run that is asked to stop saves itself first, where it can go on exactly."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import TrainerFn


class Stopped(SystemExit):
    """Ends a fit that saved itself.

    Args:
        by: The signal.
        checkpoint: What was saved.
        requeued: Whether the cluster will start the run again.
        code: The exit status.
    """

    def __init__(self, by: signal.Signals, checkpoint: Path, *, requeued: bool, code: int) -> None:
        super().__init__(code)
        self.by, self.checkpoint, self.requeued = by, checkpoint, requeued


class SaveOnSignal(Callback):
    """Save a checkpoint and leave when SIGTERM, Ctrl-C or SLURM's requeue signal comes, after the step it comes in.

    Whichever rank it reaches, all stop after the same optimizer step. An evaluation that is under way is finished
    first. The exit status is 128 plus the signal's number, as is customary. A second Ctrl-C leaves at once and saves
    nothing. Under SLURM the requeue signal (SLURMEnvironment's, SIGUSR1 unless it is given another) also has the job
    requeued; the status is then 0.

    Lightning's own handlers never come in: they ask the other ranks from within the handler, which can hang in the
    midst of a step, and save what a step was half done with.

    Callbacks are called in their order, and this one belongs behind all others, whose work its checkpoint holds.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._requeue: signal.Signals | None = None
        self._folder: Path | None = None
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen when Lightning would; before a fit, and under other commands, there is nothing to save."""
        trainer._signal_connector = _Listening(trainer, self._listen if stage == TrainerFn.FITTING else None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the run's folder, for which all ranks must ask together."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from here."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - as Lightning has it
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """After an optimizer step, save and leave if any rank was asked to.

        Between steps that accumulate gradients nothing is saved: a checkpoint has none.
        """
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            self._stop(trainer)

    def _listen(self, trainer: Trainer) -> None:
        handle(signal.SIGTERM, self._note)
        handle(signal.SIGINT, self._note)
        self._requeue = requeue_signal(trainer)
        if self._requeue is not None:
            handle(self._requeue, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._received == signal.SIGINT:
                raise KeyboardInterrupt
            if os.environ.get("LOCAL_RANK", "0") == "0":
                os.write(2, b"\nsynthalign: saving after this step, then stopping; Ctrl-C again stops at once\n")
        if self._received is None or self._received != self._requeue:  # SIGTERM follows it where time runs out
            self._received = signal.Signals(number)

    def _stop(self, trainer: Trainer) -> NoReturn:
        assert self._folder is not None
        numbers = [trainer.strategy.broadcast(int(self._received or 0), src=rank) for rank in range(trainer.world_size)]
        by = signal.Signals(max(numbers, key=lambda number: (number == self._requeue, number)))
        name = f"stopped-epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
        checkpoint = self._folder / "checkpoints" / name
        trainer.save_checkpoint(checkpoint)
        requeued = by == self._requeue and trainer.strategy.broadcast(trainer.is_global_zero and _requeued())
        environment = trainer._accelerator_connector.cluster_environment
        # Where Lightning started the other ranks, it kills the first as soon as one of them ends with a status
        quiet = requeued or (isinstance(environment, LightningEnvironment) and trainer.local_rank > 0)
        raise Stopped(by, checkpoint, requeued=requeued, code=0 if quiet else 128 + by)


class _Listening(_SignalConnector):
    """Lightning's, which puts back at the end what handlers there were, with ours in the place of its own."""

    def __init__(self, trainer: Trainer, listen: Callable[[Trainer], None] | None) -> None:
        super().__init__(trainer)
        self._listen = listen

    def register_signal_handlers(self) -> None:
        self._original_handlers = self._get_current_signal_handlers()
        if self._listen is not None:
            self._listen(self.trainer)


def requeue_signal(trainer: Trainer) -> signal.Signals | None:
    """Return the signal by which SLURM asks for the job to be queued again; None if it is not to."""
    environment = trainer._accelerator_connector.cluster_environment  # shown by some strategies only
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return None
    assert environment.requeue_signal is not None, "only Windows has none"
    return environment.requeue_signal


@contextmanager
def requeued_early(trainer: Trainer) -> Iterator[None]:
    """Have the job queued again and leave if SLURM asks for that before there is anything to save.

    Pairs are made then, and what has landed stays; the signal would else kill the run.
    """
    if (asked := requeue_signal(trainer)) is None:
        yield
        return

    def requeue(number: int, frame: FrameType | None) -> NoReturn:
        first = trainer.is_global_zero
        if first and not _requeued():
            raise SystemExit(128 + number)
        if first:
            os.write(2, b"synthalign: stopped; what had landed on disk stays, and the job is queued again\n")
        raise SystemExit(0)

    before = handle(asked, requeue)
    try:
        yield
    finally:
        handle(asked, before)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leave at once, as a handler of a signal."""
    name = signal.Signals(number).name
    if os.environ.get("LOCAL_RANK", "0") == "0":
        line = (
            f"synthalign: stopped by {name}; what had landed on disk stays, and the same command goes on from there\n"
        )
        os.write(2, line.encode())
    raise SystemExit(128 + number)


def handle(number: signal.Signals, handler: Any) -> Any:  # noqa: ANN401 - typeshed has no name for it
    """Set a handler and return the one before; where none may be set, which is outside the main thread, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(number, handler)


def _requeued() -> bool:
    """Ask SLURM to start the job again."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        why = None if done.returncode == 0 else " ".join(done.stderr.split()) or f"status {done.returncode}"
    except OSError as error:
        why = str(error.strerror)
    if why is not None:
        line = f"synthalign: `scontrol requeue {job}` failed ({why}): start the job again by hand\n"
        os.write(2, line.encode())  # it may be a handler that asks
    return why is None
