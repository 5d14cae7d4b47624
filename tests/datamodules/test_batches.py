"""Each row at most once an epoch, ranks disjoint and equal in number, seeded, another order in each epoch."""

import random
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from synthalign.datamodules.batches import LengthGroupedBatches, RankBatches, TrainingLoader, even_batches

RANDOM = random.Random(0)
LENGTHS = [RANDOM.randint(10, 500) for _ in range(203)]


def epoch(number, *, rank=0, world_size=1, batch_size=4, seed=0, lengths=LENGTHS):
    batches = RankBatches(LengthGroupedBatches(lengths, batch_size, seed=seed, world_size=world_size), rank=rank)
    batches.set_epoch(number)
    assert len(list(batches)) == len(batches)
    return list(batches)


@pytest.mark.parametrize("num_rows", [1, 4, 5, 203])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_one_process_sees_every_row_once_an_epoch(num_rows, batch_size):
    batches = epoch(0, batch_size=batch_size, lengths=LENGTHS[:num_rows])
    assert sorted(row for batch in batches for row in batch) == list(range(num_rows))
    assert sorted(len(batch) for batch in batches)[1:] == [batch_size] * (len(batches) - 1)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_are_disjoint_and_equal_in_number(world_size):
    ranks = [epoch(3, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {51 // world_size}  # 203 rows make 51 batches
    seen = [row for batches in ranks for batch in batches for row in batch]
    assert len(seen) == len(set(seen)) >= 203 - 4 * (world_size - 1)


def test_ranks_together_take_the_steps_of_one_process():
    alone, first, second = epoch(1), epoch(1, rank=0, world_size=2), epoch(1, rank=1, world_size=2)
    together = [batch for step in zip(first, second, strict=True) for batch in step]
    assert together == alone[: len(together)] and len(alone) - len(together) == 1


def test_what_ranks_leave_out_is_another_share_in_each_epoch():
    left_out = set()
    for number in range(10):
        seen = {row for rank in range(2) for batch in epoch(number, rank=rank, world_size=2) for row in batch}
        left_out.add(frozenset(range(203)) - seen)
    assert len(left_out) > 5


def test_order_is_fixed_by_seed_and_epoch():
    assert epoch(2, seed=7) == epoch(2, seed=7)
    orders = [epoch(number, seed=seed) for number in range(3) for seed in range(3)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


def test_batches_hold_rows_alike_in_length_but_come_in_no_order_of_length():
    batches = epoch(0)
    spans = [max(LENGTHS[row] for row in batch) - min(LENGTHS[row] for row in batch) for batch in batches]
    assert sum(spans) / len(spans) < 60  # of 490; four random rows span 290 on average
    means = [sum(LENGTHS[row] for row in batch) / len(batch) for batch in batches]
    rising = sum(one < other for one, other in pairwise(means))
    assert 15 < rising < 35  # of 50


def test_a_run_goes_on_where_it_stood_and_the_next_epoch_is_whole():
    loader = TrainingLoader(LENGTHS, batch_sampler=RankBatches(LengthGroupedBatches(LENGTHS, 4, seed=0)))
    loader.batch_sampler.set_epoch(2)
    stream = iter(loader)
    for _ in range(20):
        next(stream)
    assert loader.state_dict() == {"epoch": 2, "given": 20}
    rest = [batch.tolist() for batch in stream]

    again = TrainingLoader(LENGTHS, batch_sampler=RankBatches(LengthGroupedBatches(LENGTHS, 4, seed=0)))
    again.load_state_dict({"epoch": 2, "given": 20})
    again.batch_sampler.set_epoch(2)
    assert [batch.tolist() for batch in again] == rest and len(rest) == 31
    assert again.state_dict() == {"epoch": 2, "given": 51}
    again.batch_sampler.set_epoch(3)
    assert len(list(again)) == len(again) == 51


class Recorder(LightningModule):
    """Trains nothing, and notes the rows of every epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[int]] = {}

    def training_step(self, batch, batch_idx):
        self.seen.setdefault(self.current_epoch, []).extend(batch.tolist())
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_lightning_announces_every_epoch(num_workers, tmp_path):
    module = Recorder()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    batches = LengthGroupedBatches(list(range(11)), 2, seed=5)
    loader = TrainingLoader(range(11), batch_sampler=RankBatches(batches), num_workers=num_workers)
    trainer.fit(module, loader)
    for number in range(3):
        assert module.seen[number] == [row for step in batches(number) for row in step[0]]
    assert module.seen[0] != module.seen[1] != module.seen[2]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_rows", [7, 8, 23, 203])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_held_out_rows_are_shared_out_evenly(world_size, num_rows, batch_size):
    lengths = LENGTHS[:num_rows]
    ranks = [even_batches(lengths, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for share in ranks for batch in share]
    assert sorted(row for batch in batches for row in batch) == list(range(num_rows))
    assert all(1 <= len(batch) <= max(batch_size, 2) for batch in batches)


def test_one_process_validates_in_as_few_batches_as_possible():
    assert len(even_batches(LENGTHS, 64)) == 4  # 203 / 64, rounded up


def test_fewer_rows_than_ranks_are_everyones():
    assert [even_batches([9, 3], 4, rank=rank, world_size=3) for rank in range(3)] == [[[1], [0]]] * 3
