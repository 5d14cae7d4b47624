"""A rank that dies takes the run down, soon and in one line that names it."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from brightness import write_files
from dpo.drawn_pairs import write_set
from torch.distributed import TCPStore

from synthalign.training.ranks import free_port, watched

TESTS = Path(__file__).parents[1]
WITHIN_S = 60.0
"""Much longer than it takes, much shorter than any time-out of torch's."""

CONFIG = """
trainer:
  default_root_dir: runs
  accelerator: cpu
  strategy: ddp
  devices: 2
  max_epochs: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: Evaluate
      init_args:
        every_n_steps: 2
        evals:
          - class_path: synthalign.evals.pope.POPE
            init_args: {files: {random: bench/random.json}, images: bench/images, suffix: ""}
    - {class_path: resume.dying.Dying, init_args: {rank: RANK, when: WHEN}}
model:
  class_path: DPOModule
  init_args:
    policy: POLICY
    loss: {class_path: synthalign.dpo.losses.DPO, init_args: {beta: 0.5}}
data:
  class_path: SyntheticPreferenceDataModule
  init_args: {pairs: set/pairs.json, batch_size: 1}
"""


@pytest.mark.parametrize(
    ("rank", "when"),
    [
        (1, "evaluating"),
        pytest.param(1, "training", marks=pytest.mark.prove),
        pytest.param(0, "evaluating", marks=pytest.mark.prove),
        pytest.param(0, "training", marks=pytest.mark.prove),
    ],
)
def test_a_rank_that_is_killed_takes_the_run_down_and_is_named(rank, when, tmp_path, tiny_llava):
    write_set(tmp_path / "set")
    write_files(tmp_path / "bench")
    text = CONFIG.replace("POLICY", str(tiny_llava)).replace("RANK", str(rank)).replace("WHEN", when)
    (tmp_path / "config.yaml").write_text(text)
    with (tmp_path / "err").open("w") as err:
        run = subprocess.Popen(
            [sys.executable, "-m", "synthalign", "fit", "--config", "config.yaml"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
        )
        try:
            code = run.wait(timeout=300)
            ended = time.time()
            wait_until_gone(run.pid)
        finally:
            if group_lives(run.pid):
                os.killpg(run.pid, signal.SIGKILL)
    said = (tmp_path / "err").read_text()
    assert ended - float((tmp_path / "died").read_text()) < WITHIN_S
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("synthalign: error:")]
    if rank == 1:
        assert code == 1
        assert re.search(
            r"rank 1 of 2 \(process \d+\) was killed by SIGKILL, so all stop; go on with --ckpt_path", line
        )
    else:
        assert code == -signal.SIGKILL
        assert re.search(r"rank 1 (stops, since the first rank is gone|of 2 waits for another in vain)", line)


def test_ranks_meet_where_no_connection_is_given_a_port_meanwhile():
    span = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not span.is_file():
        pytest.skip("no Linux")
    lowest, highest = map(int, span.read_text().split())
    assert not lowest <= free_port() <= highest


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(group: int) -> None:
    """Wait for the last process of a run."""
    end = time.monotonic() + WITHIN_S
    while group_lives(group):
        assert time.monotonic() < end, "a rank is left running"
        time.sleep(0.05)


SLEEPS = "import time; time.sleep(600)"


def be_first(said: Path, others: list[str], why: str | None) -> None:
    """Be the first of three ranks; the others, which Lightning would have started, are scripts."""
    sys.stderr = said.open("w")
    procs = [subprocess.Popen([sys.executable, "-c", script]) for script in others]
    launcher = SimpleNamespace(procs=procs)
    trainer: Any = SimpleNamespace(world_size=3, global_rank=0, strategy=SimpleNamespace(launcher=launcher))
    with watched(trainer):
        if why is None:
            threading.Event().wait()  # as for a collective
        raise RuntimeError(why)


@pytest.mark.parametrize(
    ("other", "why", "line"),
    [
        ("import os; os.kill(os.getpid(), 9)", None, r"rank 2 of 3 \(process \d+\) was killed by SIGKILL, so all stop"),
        ("raise SystemExit(3)", None, r"rank 2 of 3 \(process \d+\) ended with status 3, so all stop"),
        ("import os; os.kill(os.getpid(), 9)", "[gloo/pair.cc] closed", r"rank 2 of 3 \(process \d+\) was killed by"),
        (SLEEPS, "[gloo/pair.cc] closed", r"rank 0 of 3 waits for another in vain \(closed\)"),
    ],
    ids=["killed", "failed", "killed, and the first noticed", "not reached"],
)
def test_the_first_rank_does_not_wait_for_one_that_is_gone(other, why, line, tmp_path):
    first = multiprocessing.get_context("fork").Process(target=be_first, args=(tmp_path / "err", [SLEEPS, other], why))
    first.start()
    first.join(WITHIN_S)
    alive = first.is_alive()
    first.kill()
    said = (tmp_path / "err").read_text()
    assert not alive and first.exitcode == 1
    assert re.search(line, said)


def test_a_port_that_is_taken_is_one_line():
    trainer: Any = SimpleNamespace(world_size=2, global_rank=0, strategy=SimpleNamespace(launcher=None))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = rf"^rank 0 cannot listen on port {port}, .*: start again"
        with pytest.raises(RuntimeError, match=line) as caught, watched(trainer):
            TCPStore("127.0.0.1", port, world_size=2, is_master=True)
    assert "\n" not in str(caught.value)
