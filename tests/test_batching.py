"""Where memory runs out, the batch is halved, and it is said."""

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch

from synthalign.batching import in_batches, is_out_of_memory, noting_halvings


class Limited:
    """Work that has memory for so many rows."""

    def __init__(self, room: int) -> None:
        self.room, self.sizes = room, list[int]()

    def __call__(self, rows: Sequence[int]) -> list[int]:
        """Square each row."""
        self.sizes.append(len(rows))
        if len(rows) > self.room:
            torch.empty(2**50)  # the allocator refuses: a real error of its own
        return [row**2 for row in rows]


def test_rows_are_worked_in_order_a_batch_at_a_time():
    work = Limited(100)
    assert in_batches(range(7), 3, work, "Limited") == [0, 1, 4, 9, 16, 25, 36]
    assert work.sizes == [3, 3, 1]
    assert in_batches([], 3, work, "Limited") == []


def test_out_of_memory_halves_the_batch_notes_it_and_goes_on():
    work = Limited(2)
    with noting_halvings() as notes:
        assert in_batches(range(10), 8, work, "Limited") == [row**2 for row in range(10)]
    assert work.sizes == [8, 4, 2, 2, 2, 2, 2]
    assert notes == [
        "Limited: out of memory with 8 rows at once, went on with 4",
        "Limited: out of memory with 4 rows at once, went on with 2",
    ]
    with noting_halvings() as notes:
        in_batches(range(4), 2, Limited(2), "Limited")
    assert notes == []


def test_a_single_row_without_room_is_one_line():
    with pytest.raises(RuntimeError, match="Limited: out of memory with a single row: take a smaller model"):
        in_batches(range(3), 2, Limited(0), "Limited")


def test_other_errors_are_not_mistaken_for_it():
    def fails(rows: Sequence[int]) -> list[int]:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        in_batches(range(3), 2, fails, "fails")
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("no kernel image"))


def test_a_model_in_a_process_short_of_memory_goes_on_with_smaller_batches(tiny_clip):
    """The limit is the kernel's, on the address space."""
    script = f"""
import resource
from PIL import Image
from synthalign.batching import noting_halvings
from synthalign.rewards.clip import CLIPReward
reward = CLIPReward(model={str(tiny_clip)!r}, batch_size=2048)
images, prompts = [Image.new("RGB", (28, 28), (n % 256, 0, 0)) for n in range(2048)], ["a cat " * 10] * 2048
expected = CLIPReward(model={str(tiny_clip)!r}, batch_size=64).score(prompts[:64], images[:64])
reward.score(prompts[:2], images[:2])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 20 * 2**20,) * 2)
with noting_halvings() as notes:
    scores = reward.score(prompts, images)
print(len(scores), float((scores[:64] - expected).abs().max()) < 1e-4)
print(notes)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    counted, notes = done.stdout.splitlines()
    assert counted == "2048 True"
    assert "out of memory with 2048 rows at once, went on with 1024" in notes


def test_a_part_that_loses_a_row_is_found_out():
    """What came after it would stand a row too high."""
    with pytest.raises(AssertionError, match="Lossy gave 2 results for 3 rows"):
        in_batches(range(6), 3, lambda rows: rows[1:], "Lossy")
