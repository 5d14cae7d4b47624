"""The demo trains alike under every layout: its first 20 losses agree."""

import csv
import sys
from pathlib import Path

import pytest

from synthalign.cli import main
from synthalign.world.data import write as write_world

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
LAYOUTS = ("dpo.together.Rows", "dpo.together.Tree", "synthalign.dpo.layouts.Trie")

pytestmark = pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")


def test_the_demos_first_20_losses_agree(tmp_path, monkeypatch):
    write_world(tmp_path / "world", seed=0, num_prompts=24, questions_per_prompt=4, num_scenes=2)
    monkeypatch.chdir(DEMO.parents[1])  # the demo's models lie there
    monkeypatch.setattr(sys, "argv", ["synthalign"])
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(f"""
trainer:
  default_root_dir: {tmp_path}/run
  max_epochs: 20
  max_steps: 20
  log_every_n_steps: 1
  callbacks: []
  enable_checkpointing: false
  enable_progress_bar: false
data:
  init_args:
    batch_size: 8
    synthesis: {{prompts: {tmp_path}/world/prompts.jsonl, store: {tmp_path}/store, num_samples: 3}}
""")
    losses = []
    for number, layout in enumerate(LAYOUTS):
        chosen = ["--model.init_args.layout", layout]
        main(["fit", "--config", str(DEMO), "--config", str(overlay), *chosen])
        with (tmp_path / "run" / ("fit" if not number else f"fit-{number + 1}") / "metrics.csv").open() as file:
            losses.append([float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]])
    rows, tree, trie = losses
    assert len(rows) == len(tree) == len(trie) == 20
    assert min(rows) < rows[0] - 0.1
    assert tree == pytest.approx(rows, abs=1e-5)
    assert trie == pytest.approx(rows, abs=1e-5)
