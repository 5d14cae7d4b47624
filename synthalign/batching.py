"""Working through rows a batch at a time, with smaller batches where memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

from synthalign.weights import free_cuda

Row = TypeVar("Row")
Result = TypeVar("Result")

SAID_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""By the CPU's allocator, by the CUDA driver, and by cuBLAS, whose workspace is its own."""

_notes: ContextVar[list[str] | None] = ContextVar("_notes", default=None)


def in_batches(
    rows: Sequence[Row], size: int, work: Callable[[Sequence[Row]], Sequence[Result]], name: str
) -> list[Result]:
    """Work through rows, halving the batch when memory runs out.

    Args:
        rows: n rows, in the order in which they are to be batched.
        size: Rows worked on at once.
        work: Gives one result for each row of a batch.
        name: Of the part whose memory it is; begins a message.

    Returns:
        n results, in the order of the rows.

    Raises:
        RuntimeError: Memory does not even suffice for one row.
    """
    results: list[Result] = []
    while len(results) < len(rows):
        batch = rows[len(results) : len(results) + size]
        try:
            done = work(batch)
            assert len(done) == len(batch), f"{name} gave {len(done)} results for {len(batch)} rows"
            results += done
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Here the error is gone, and with it what its frames held.
        free_cuda()
        if len(batch) == 1:
            raise RuntimeError(f"{name}: out of memory with a single row: take a smaller model, dtype or image")
        size = len(batch) // 2
        _note(f"{name}: out of memory with {len(batch)} rows at once, went on with {size}")
    return results


@contextmanager
def noting_halvings() -> Iterator[list[str]]:
    """Collect, meanwhile, one line for each time a batch was halved: last bits of those rows may differ."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in SAID_OF_MEMORY)


def _note(line: str) -> None:
    notes = _notes.get()
    if notes is not None:
        notes.append(line)
