"""Two processes share the making of the pairs, train on different ones, and learn what one process learns."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from dpo.drawn_pairs import TEN
from dpo.launched import fit
from dpo.parts import ASKED
from safetensors.torch import load_file

from synthalign.cli import main

CONFIG = """
trainer:
  default_root_dir: run
  accelerator: cpu
  max_epochs: 2
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [{class_path: SaveAdapter}, {class_path: dpo.witness.Witness}]
model:
  class_path: DPOModule
  init_args:
    policy: POLICY
    dtype: float64
    lora: {r: 4, alpha: 8}
    loss: {class_path: synthalign.dpo.losses.DPO, init_args: {beta: 0.5}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
    schedule: {class_path: synthalign.dpo.schedules.WarmupCosine}
data:
  class_path: SyntheticPreferenceDataModule
  init_args:
    batch_size: 2
    val_share: 0.4
    synthesis:
      prompts: prompts.jsonl
      store: store
      shard_size: 2
      num_images: 2
      num_samples: 3
      generator: {class_path: dpo.parts.Painter}
      image_reward: {class_path: dpo.parts.Width}
      responders: [{class_path: dpo.parts.Counting}]
      response_reward: {class_path: dpo.parts.Brevity}
      response_gates: [{class_path: synthalign.pairs.Empty}]
"""


def write(folder: Path, policy: Path) -> Path:
    folder.mkdir()
    rows = [{"id": pair.id, "prompt": pair.drawing, "questions": [pair.question, "How many?"]} for pair in TEN]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "config.yaml").write_text(CONFIG.replace("POLICY", str(policy)), encoding="utf-8")
    return folder


def logged(folder: Path, name: str) -> list[float]:
    with (folder / "run" / "fit" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_llava):
    """Two processes make the pairs and train."""
    folder = write(tmp_path_factory.mktemp("two") / "files", tiny_llava)
    fit(folder, "--trainer.strategy", "ddp", "--trainer.devices", "2")
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory, tiny_llava):
    """One process makes the same pairs, and accumulates two batches a step."""
    folder = write(tmp_path_factory.mktemp("one") / "files", tiny_llava)
    ASKED.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["synthalign"])  # the command line writes it
        main(["fit", "--config", "config.yaml", "--trainer.accumulate_grad_batches", "2"])
    return folder


def seen(folder: Path, rank: int) -> dict:
    return json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8"))


def test_each_process_makes_its_own_shards(one, two):
    number = len(list(one.glob("**/draw-*/*.parquet")))
    assert number > 3 and seen(one, 0)["made"] == {"generate": number, "respond": number}
    shares = [number - number // 2, number // 2]
    assert [seen(two, rank)["made"] for rank in (0, 1)] == [{"generate": n, "respond": n} for n in shares]


def test_each_process_trains_on_pairs_of_its_own(one, two):
    first, second = (seen(two, rank)["steps"] for rank in (0, 1))
    alone = seen(one, 0)["steps"]
    assert len(first) == len(second) > 4
    epoch = len(first) // 2
    for share in (slice(0, epoch), slice(epoch, None)):
        here, there = ([row_id for batch in steps[share] for row_id in batch] for steps in (first, second))
        assert len(here) == len(set(here)) and not set(here) & set(there)
    assert first[:epoch] != first[epoch:]
    together = [batch for step in zip(first, second, strict=True) for batch in step]
    assert len(together) == len(alone)  # an even number of batches, so that none is left out here
    assert together == alone


def test_the_losses_are_those_of_one_process_that_accumulates(one, two):
    losses = logged(one, "train/loss")
    assert losses[0] == pytest.approx(0.693147, rel=1e-5) and losses[-1] != losses[0]
    for name in ("train/loss", "train/reward_margin", "train/chosen_tokens"):
        assert logged(two, name) == pytest.approx(logged(one, name), rel=1e-5)
    for name in ("val/loss", "val/accuracy", "val/rejected_logps"):
        assert logged(two, name) == pytest.approx(logged(one, name), rel=1e-5)
        assert len(logged(two, name)) == 2


def test_the_adapters_are_the_same(one, two):
    alone, together = (
        load_file(folder / "run" / "fit" / "adapter" / "adapter_model.safetensors") for folder in (one, two)
    )
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-6, atol=1e-9, msg=name)
