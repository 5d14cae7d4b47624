"""Clocks, what a step gave, and the peak memory that it adds."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Contender(NamedTuple):
    """One way to take a training step."""

    network: Any
    step: Callable[[], Tensor]  # forward and backward; gives the loss
    optimizer: torch.optim.Optimizer

    def take(self) -> Tensor:
        """Take a whole step; its gradients stay."""
        loss = self.step()
        self.optimizer.step()
        return loss


class Given(NamedTuple):
    """What a step gave."""

    loss: float
    gradients: dict[str, Tensor]  # of the adapters


class Spread(NamedTuple):
    """Of rounds."""

    median: float
    low: float
    high: float


def given(contender: Contender) -> Given:
    """Take a step and return what it gave."""
    contender.optimizer.zero_grad(set_to_none=True)
    loss = contender.take().item()
    found = {name: p.grad.float().cpu() for name, p in contender.network.named_parameters() if p.grad is not None}
    contender.optimizer.zero_grad(set_to_none=True)
    return Given(loss, found)


def errors(found: Given, expected: Given) -> tuple[float, float]:
    """Return the relative distances of loss and gradients, those of all adapters taken together.

    Raises:
        ValueError: Other parameters have gradients.
    """
    if found.gradients.keys() != expected.gradients.keys():
        raise ValueError(f"gradients of others: {sorted(found.gradients.keys() ^ expected.gradients.keys())[:4]}")
    off = sum(float((one - expected.gradients[name]).square().sum()) for name, one in found.gradients.items())
    whole = sum(float(one.square().sum()) for one in expected.gradients.values())
    return abs(found.loss / expected.loss - 1), (off / whole) ** 0.5


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time something: on the CPU this process's own time, which a busy machine hardly changes; on CUDA its events'."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000


def one_round(contenders: dict[str, Contender], device: torch.device) -> dict[str, float]:
    """Time every contender once, in turn, seconds."""
    taken = {}
    for name, contender in contenders.items():
        gc.collect()  # what another left is not this one's to sweep
        taken[name] = seconds(contender.take, device)
        contender.optimizer.zero_grad(set_to_none=True)
    return taken


def spread(values: list[float]) -> Spread:
    """Return the median and the range."""
    return Spread(statistics.median(values), min(values), max(values))


def ratios(slower: list[float], faster: list[float]) -> Spread:
    """Return how many times faster one is than another, round by round."""
    return spread([one / other for one, other in zip(slower, faster, strict=True)])


def added_mib(contender: Contender, device: torch.device) -> float:
    """Return the peak memory that one step adds, once an earlier one has warmed everything.

    On the CPU it is that of the process, so that nothing else may have been in it: run it in a fresh one.
    """
    given(contender)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        contender.take()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    resident = _status("VmRSS")
    contender.take()
    return _status("VmHWM") - resident


def _status(field: str) -> float:
    """Return a line of this process's status, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
