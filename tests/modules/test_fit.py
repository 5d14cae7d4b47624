"""One command trains on ten pairs in the authors' format, and leaves an adapter that needs nothing of ours."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dpo.drawn_pairs import EMPTY, FIT, FOREIGN, draw, write_set
from dpo.scoring import logps_of

from synthalign.cli import main
from synthalign.dpo.batch import PairTokens, collate
from synthalign.dpo.policy import load_policy
from synthalign.vlm import Chat

TESTS = Path(__file__).parents[1]

CONFIG = """
trainer:
  default_root_dir: run
  accelerator: cpu
  max_epochs: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [{class_path: SaveAdapter}]
model:
  class_path: DPOModule
  init_args:
    policy: POLICY
    lora: {r: 4, alpha: 8, dropout: 0.1}
    loss: {class_path: synthalign.dpo.losses.DPO, init_args: {beta: 0.5, label_smoothing: 0.1}}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
    schedule: {class_path: synthalign.dpo.schedules.WarmupCosine}
data:
  class_path: SyntheticPreferenceDataModule
  init_args: {pairs: set/pairs.json, batch_size: 2}
"""

# A process that cannot import synthalign: plain transformers and peft, on the adapter's folder.
PLAIN = """
import json, sys
sys.modules["synthalign"] = None
sys.path.insert(0, sys.argv[1])
import torch

from dpo.drawn_pairs import FIT, draw
from dpo.plain import plain_logps
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
base, adapter = sys.argv[2:]
network = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter)
processor = AutoProcessor.from_pretrained(base)
images, questions = [draw(pair.drawing) for pair in FIT], [pair.question for pair in FIT]
with torch.no_grad():
    sides = [plain_logps(network, processor, images, questions, [getattr(pair, side) for pair in FIT])[0].tolist()
             for side in ("chosen", "rejected")]
print(json.dumps(sides))
"""


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, tiny_llava):
    """Run ``fit`` once; give the run's folder."""
    folder = tmp_path_factory.mktemp("fit")
    write_set(folder / "set")
    (folder / "config.yaml").write_text(CONFIG.replace("POLICY", str(tiny_llava)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["synthalign"])  # the command line writes it
        main(["fit", "--config", "config.yaml"])
    return folder / "run" / "fit"


def test_fit_trains_an_epoch_and_logs_every_step(fitted):
    with (fitted / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert len(rows) == 4  # 8 pairs, two a step
    assert float(rows[0]["train/loss"]) == pytest.approx(math.log(2), rel=1e-6)  # smoothed or not
    assert [float(row["train/reward_margin"]) == 0 for row in rows] == [True, False, False, False]


def test_fit_drops_counts_and_names_the_empty_and_the_foreign_answer(fitted, capfd, monkeypatch):
    monkeypatch.chdir(fitted.parents[1])
    monkeypatch.setattr(sys, "argv", ["synthalign"])
    main(["fit", "--config", "config.yaml", "--trainer.max_steps", "1"])
    said = capfd.readouterr().err
    assert "8 pairs; dropped 2 (empty 1, foreign_script 1)" in said
    assert f"{EMPTY}: empty (rejected: " in said and f"{FOREIGN}: foreign_script (rejected: " in said


def test_the_adapter_gives_the_same_logps_in_a_process_without_synthalign(fitted, tiny_llava):
    command = [sys.executable, "-I", "-c", PLAIN, str(TESTS), str(tiny_llava), str(fitted / "adapter")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = torch.tensor(json.loads(done.stdout.splitlines()[-1]))

    chat = Chat(model=str(tiny_llava))
    pairs = [
        PairTokens(p.id, draw(p.drawing), p.drawing, p.question, *(chat.response_ids(p.question, a) for a in p[3:]))
        for p in FIT
    ]
    network = load_policy(str(tiny_llava), adapter=str(fitted / "adapter")).eval()
    with torch.no_grad():
        ours = logps_of(network, collate(pairs, chat))
        base = logps_of(load_policy(str(tiny_llava)), collate(pairs, chat))
    torch.testing.assert_close(torch.stack([ours.chosen, ours.rejected]), theirs, rtol=1e-6, atol=0)
    assert (ours.chosen - base.chosen).abs().min() > 0.01  # nats: the adapter has learnt something


def test_validate_and_test_take_the_adapter_and_make_nothing(fitted, monkeypatch, capfd):
    monkeypatch.chdir(fitted.parents[1])
    monkeypatch.setattr(sys, "argv", ["synthalign"])
    adapter = ["--config", "config.yaml", "--model.init_args.adapter", str(fitted / "adapter")]
    main(["validate", *adapter, "--data.init_args.val_share", "0.5"])
    assert "held out for validation" in capfd.readouterr().err
    with (fitted.parent / "validate" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["val/reward_margin"]) != 0
    main(["test", *adapter])
    assert "pairs" not in capfd.readouterr().err
