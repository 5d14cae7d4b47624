"""A rank that dies takes the others with it, and the terminal says which it was."""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import SystemRandom
from subprocess import Popen, TimeoutExpired
from typing import NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.distributed import destroy_process_group, is_initialized

FIRST = "SYNTHALIGN_FIRST_RANK"
"""Environment variable: the process that started the other ranks."""

POLL_S = 0.2
GRACE_S = 3.0
"""What a rank gets to end by itself, with its logs closed, after another died."""

UNREACHED = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out", re.IGNORECASE)
"""What torch says of a rank that it waits for in vain."""


CHOSEN = "SYNTHALIGN_CHECKPOINT"
"""Environment variable: the checkpoint that the first rank goes on from, for those that Lightning starts after it."""

SAID = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", CHOSEN)
"""Environment variables in which Lightning leaves where the ranks meet, and we what they have in common."""


def free_port() -> int:
    """Return a port for ranks to meet at, out of those that the kernel gives to whoever connects in the meantime."""
    for port in SystemRandom().sample(MEETING, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no port from {MEETING.start} to {MEETING.stop - 1} is free for the ranks to meet at")


MEETING = range(20_000, 32_000)
"""Ports below Linux's ip_local_port_range."""


def choose_port(trainer: Trainer) -> None:
    """Say in the environment where the ranks meet, if Lightning starts them and the user has not said it.

    Lightning would take a port some seconds before its use, from those that anybody may be given by then.
    """
    environment = trainer._accelerator_connector.cluster_environment  # shown by some strategies only
    if trainer.world_size > 1 and isinstance(environment, LightningEnvironment):
        os.environ.setdefault("MASTER_PORT", str(free_port()))


@contextmanager
def left_as_found() -> Iterator[None]:
    """Take a run's process group down after it, and with it what the environment says of its ranks.

    Else the next run of this process, or of one that it starts, would take itself for a rank of this one.
    """
    before = {name: os.environ.get(name) for name in SAID}
    stood = is_initialized()
    try:
        yield
    finally:
        if is_initialized() and not stood:
            destroy_process_group()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def started_by_first() -> bool:
    """Whether Lightning started this process for the first rank of its node, which has done what need be done once."""
    return os.environ.get(FIRST) == str(os.getppid())


@contextmanager
def watched(trainer: Trainer) -> Iterator[None]:
    """Let no rank wait for one that is gone, and say which is.

    The first rank watches those that Lightning started, and they watch it. Lightning itself looks every five seconds
    and kills all without a word; where ranks wait for one that is gone, gloo fails at once with a trace of sockets, and
    NCCL waits for its time-out, half an hour. Ranks that srun or torchrun started are theirs to watch; what is left
    there is the time-out of the strategy.

    Args:
        trainer: About to begin.

    Raises:
        SystemExit: Another rank died, which was said; where this one does not come round to it, the process just ends.
        RuntimeError: Another rank cannot be reached, or this one not by the others.
    """
    if trainer.world_size == 1:
        yield
        return
    watch = _Watch(trainer)
    try:
        yield
        watch.wait_for_others(60.0)
    except RuntimeError as error:
        if watch.saw_a_death():
            raise SystemExit(1) from None
        if taken := re.search(r"port: (\d+).*EADDRINUSE", str(error), re.DOTALL):
            raise RuntimeError(
                f"rank {trainer.global_rank} cannot listen on port {taken[1]}, which another program has taken: start "
                "again, and if MASTER_PORT is set, with a free one"
            ) from error
        if not UNREACHED.search(str(error)):
            raise
        raise RuntimeError(
            f"rank {trainer.global_rank} of {trainer.world_size} waits for another in vain ({_gist(error)}): one died, "
            "or took longer than the strategy's timeout; go on with --ckpt_path last, or a checkpoint of the run"
        ) from error
    finally:
        watch.close()


class _Watch:
    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.death, self.over = threading.Event(), threading.Event()
        self.first = not started_by_first()
        if self.first:
            os.environ[FIRST] = str(os.getpid())
        watch = self._watch_others if self.first else self._watch_first
        self.thread = threading.Thread(target=watch, name="ranks", daemon=True)
        self.thread.start()

    def wait_for_others(self, timeout_s: float) -> None:
        """Let the others end before the first does."""
        end = time.monotonic() + timeout_s
        for child in self._others:
            with suppress(TimeoutExpired):
                child.wait(timeout=max(0.0, end - time.monotonic()))

    def saw_a_death(self) -> bool:
        """Whether a rank died; asked when this one has failed, perhaps for that."""
        return bool(self._others) and self.death.wait(timeout=5 * POLL_S)

    def close(self) -> None:
        """Watch no longer; none outlives the first."""
        self.over.set()
        self.thread.join()
        self.wait_for_others(GRACE_S)
        for child in self._others:
            child.kill()
        if self.first:
            os.environ.pop(FIRST, None)

    @property
    def _others(self) -> list[Popen[bytes]]:
        return getattr(self.trainer.strategy.launcher, "procs", [])

    def _watch_first(self) -> None:
        parent = os.getppid()
        while not self.over.wait(POLL_S):
            if os.getppid() != parent and not self.over.wait(GRACE_S):
                _end(f"rank {self.trainer.global_rank} stops, since the first rank is gone")

    def _watch_others(self) -> None:
        while not self.over.wait(POLL_S):
            for rank, child in enumerate(self._others, 1):
                if child.poll():
                    self._mourn(rank, child)
                    return

    def _mourn(self, rank: int, child: Popen[bytes]) -> None:
        if child.returncode < 0:
            how = f"was killed by {signal.Signals(-child.returncode).name}"
        else:
            how = f"ended with status {child.returncode}"
            if self.over.wait(GRACE_S):  # this rank has failed by itself, for the reason that the other one has printed
                return
        _say(
            f"rank {rank} of {self.trainer.world_size} (process {child.pid}) {how}, so all stop; "
            "go on with --ckpt_path last, or a checkpoint of the run"
        )
        self.death.set()
        for other in self._others:
            other.kill()
        if not self.over.wait(GRACE_S):
            os._exit(1)


def _gist(error: BaseException) -> str:
    return re.sub(r"^\[[^]]*\] *", "", str(error).splitlines()[0])  # gloo begins with a place in its source


def _say(line: str) -> None:
    sys.stderr.write(f"synthalign: error: {line}\n")
    sys.stderr.flush()


def _end(line: str) -> NoReturn:
    _say(line)
    os._exit(1)
