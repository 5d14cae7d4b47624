"""Ranks that share a landing: signs of life, and waiting for one another's shards."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from synthalign.store.landing import write_atomically


@contextmanager
def sign_of_life(root: Path, rank: int, period_s: float = 2.0) -> Iterator[None]:
    """Touch this rank's sign of life every ``period_s`` seconds: the others know a slow rank from a dead one by it.

    Raises:
        RuntimeError: The disk is full, or cannot be written for another reason.
    """
    path, done = _life(root, rank), threading.Event()
    write_atomically(path, b"")

    def beat() -> None:
        while not done.wait(period_s):
            with suppress(OSError):  # a network's disk is away for a while at times, and the rank lives on
                path.touch()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def wait_for(
    missing: Callable[[], Sequence[tuple[int, str]]], root: Path, silence_s: float = 120.0, period_s: float = 0.2
) -> None:
    """Wait until no shard is missing.

    Args:
        missing: Gives the (rank, shard name) pairs that have not landed.
        root: Where the ranks leave their signs of life.
        silence_s: A rank that owes a shard and shows no sign of life for this long is taken for dead, seconds.
        period_s: How often to look, seconds.

    Raises:
        RuntimeError: A rank that owes a shard is dead.
    """
    seen: dict[int, tuple[float, float]] = {}
    while owed := missing():
        now = time.monotonic()
        for rank in {rank for rank, _ in owed}:
            path = _life(root, rank)
            stamp = path.stat().st_mtime if path.exists() else 0.0
            if rank not in seen or seen[rank][0] != stamp:
                seen[rank] = (stamp, now)
            elif now - seen[rank][1] > silence_s:
                names = [name for owner, name in owed if owner == rank]
                raise RuntimeError(
                    f"rank {rank} has shown no sign of life for {silence_s:.0f} s and owes {len(names)} shards "
                    f"({names[0]}, …) in {root}; start the run again: finished shards are kept"
                )
        time.sleep(period_s)


def _life(root: Path, rank: int) -> Path:
    return root / f".rank-{rank:05d}.alive"
