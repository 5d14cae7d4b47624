"""Several ranks of one run, forked from a process of their own once all is imported: seconds less than each alone."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parent


def run_script(file: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a test file as a script; what lies in tests/ can be imported in it."""
    return subprocess.run(
        [sys.executable, file, *args],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def statuses(world_size: int, work: Callable[[], None]) -> list[int | None]:
    """Let every rank work, and return their exit statuses. Trainers find their rank in the environment."""
    from synthalign.training.ranks import free_port

    port = free_port()

    def be(rank: int) -> None:
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work()

    ranks = [multiprocessing.get_context("fork").Process(target=be, args=(rank,)) for rank in range(world_size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return [rank.exitcode for rank in ranks]


def fork_ranks(world_size: int, work: Callable[[], None]) -> None:
    """Let every rank work, and end badly if one of them does."""
    if codes := [code for code in statuses(world_size, work) if code]:
        raise SystemExit(f"{len(codes)} of {world_size} ranks failed")
