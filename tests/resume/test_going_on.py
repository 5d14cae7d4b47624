"""What a command says and checks of the checkpoint that it goes on from."""

import os
import sys
from pathlib import Path

import pytest
from dpo.drawn_pairs import write_set

from synthalign.cli import main
from synthalign.training.ranks import CHOSEN, FIRST

CONFIG = """
trainer:
  default_root_dir: runs
  accelerator: cpu
  max_epochs: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [{class_path: SaveAdapter}, {class_path: ModelCheckpoint, init_args: {filename: end}}]
model:
  class_path: DPOModule
  init_args:
    policy: POLICY
    loss: {class_path: synthalign.dpo.losses.DPO, init_args: {beta: 0.5}}
data:
  class_path: SyntheticPreferenceDataModule
  init_args: {pairs: set/pairs.json, batch_size: 4}
"""
FIT = ["fit", "--config", "config.yaml"]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llava: Path) -> Path:
    """Train an epoch, in the present folder, and give its checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["synthalign"])  # the command line writes it
    write_set(tmp_path / "set")
    Path("config.yaml").write_text(CONFIG.replace("POLICY", str(tiny_llava)))
    main(FIT)
    return Path("runs/fit/checkpoints/end.ckpt")


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("synthalign: ")]


def test_another_optimizer_is_refused_since_the_checkpoints_would_be_taken(checkpoint, capsys):
    with pytest.raises(SystemExit):
        main([*FIT, "--ckpt_path", str(checkpoint), "--model.init_args.optimizer", "torch.optim.SGD"])
    line = said(capsys)[-1]
    assert "model.init_args.optimizer is another here: leave it as it was, or begin anew from the adapter" in line


def test_a_later_end_is_told_with_what_it_does_to_the_schedule(checkpoint, capsys):
    main([*FIT, "--ckpt_path", str(checkpoint), "--trainer.max_epochs", "3"])
    assert said(capsys)[1].endswith("its run: trainer.max_epochs; a schedule runs to the new end")


def test_the_checkpoint_is_named_and_so_are_settings_that_are_not_its_runs(checkpoint, capsys):
    on = f"synthalign: going on from {checkpoint} (step 2)"
    assert said(capsys) == []
    main([*FIT, "--ckpt_path", "last"])
    assert said(capsys) == [on]
    changed = ["--model.init_args.loss.init_args.beta", "0.4", "--data.init_args.batch_size", "2"]
    main([*FIT, "--ckpt_path", str(checkpoint), *changed])
    other = "settings are not those of its run: model.init_args.loss.init_args.beta, data.init_args.batch_size"
    others = "synthalign: the checkpoint is from the end of an epoch of other pairs or batches"
    assert said(capsys) == [on, f"synthalign: {other}", others]
    Path("runs/fit/config.yaml").unlink()
    main(["test", *FIT[1:], "--ckpt_path", str(checkpoint)])
    main([*FIT, "--ckpt_path", str(checkpoint)])
    unknown = "synthalign: no config of its run lies in runs/fit, so that whether settings have changed is not known"
    assert said(capsys) == [f"synthalign: weights are from {checkpoint} (step 2)", on, unknown]


def test_a_rank_that_the_first_has_started_takes_its_choice_and_does_not_search(checkpoint, monkeypatch, capsys):
    monkeypatch.setenv(FIRST, str(os.getppid()))
    monkeypatch.setenv(CHOSEN, str(checkpoint))
    checkpoint.with_name("newer.ckpt").write_bytes(b"not one")
    capsys.readouterr()
    main([*FIT, "--ckpt_path", "last"])
    assert said(capsys) == []
    assert Path("runs/fit-2/adapter").is_dir() and not Path("runs/fit-2/checkpoints").exists()  # nothing was left to do


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["--trainer.default_root_dir", "s3://bucket/run"], "trainer.default_root_dir"),
        (
            ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.dirpath", "s3://bucket/run"],
            "trainer.callbacks[0].dirpath",
        ),
    ],
)
def test_checkpoints_go_into_folders_only(flags, key, checkpoint, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*FIT, *flags])
    (line,) = said(capsys)
    assert line.startswith(f"synthalign: error: {key} must be a folder, got s3://bucket/run: ")
