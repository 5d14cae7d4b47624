"""A small world in which everything is as it should be, made once; each example spoils one input of a copy."""

import contextlib
import io
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tiny
from dpo.drawn_pairs import FIT, write_set

from synthalign.cli import main

CONFIG = """\
seed_everything: 0
trainer:
  default_root_dir: run
  accelerator: cpu
  max_epochs: 1
  gradient_clip_val: 1.0
  accumulate_grad_batches: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: SaveAdapter
    - class_path: ModelCheckpoint
      init_args: {save_last: true, save_top_k: 0}
model:
  class_path: DPOModule
  init_args:
    policy: POLICY
    lora: {r: 2, alpha: 4, dropout: 0.0}
    loss:
      class_path: synthalign.dpo.losses.DPO
      init_args: {beta: 0.1, label_smoothing: 0.0}
    optimizer:
      class_path: torch.optim.AdamW
      init_args: {lr: 0.01, weight_decay: 0.0}
    schedule:
      class_path: synthalign.dpo.schedules.WarmupCosine
      init_args: {warmup_ratio: 0.1}
    answer_batch_size: 4
data:
  class_path: SyntheticPreferenceDataModule
  init_args:
    pairs: set/pairs.json
    images: set
    batch_size: 4
    max_length: 400
    val_share: 0.0
    pair_gates:
      - class_path: synthalign.pairs.Identical
      - class_path: synthalign.pairs.LengthRatio
    seed: 0
"""


class World(NamedTuple):
    """The folder that examples are copies of, and the policy, which none of them changes."""

    folder: Path
    policy: Path


def build(folder: Path) -> World:
    """Write a policy, eight pairs in four formats, and what a run of two steps left: an adapter and a checkpoint."""
    policy, valid = tiny.build_llava(folder / "policy"), folder / "valid"
    write_set(valid / "set", FIT)
    (valid / "config.yaml").write_text(CONFIG.replace("POLICY", str(policy)), encoding="utf-8")
    with inside(valid), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for form, name in (("trl", "trl"), ("trl-jsonl", "lines"), ("rlaif-v", "rlaif")):
            main(["convert", "set/pairs.json", name, "--format", form, "--images", "set"])
        main(["fit", "--config", "config.yaml"])
    shutil.move(valid / "run" / "fit" / "adapter", valid / "adapter")
    (checkpoint,) = (valid / "run").rglob("last.ckpt")
    shutil.move(checkpoint, valid / "last.ckpt")
    return World(valid, policy)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder, where a library's warning is no error, and put back what a command changes of the process."""
    here, argv = Path.cwd(), sys.argv
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.chdir(here)
        sys.argv = argv
