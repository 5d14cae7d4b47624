"""A run that is told to stop saves itself after the step, says how to go on, and then ends as if never stopped."""

import json
import shlex
import signal
import sys
from pathlib import Path

import pytest
import yaml
from dpo.drawn_pairs import write_set
from forked import TESTS, run_script

from synthalign.cli import main

CONFIG = """
seed_everything: 3
trainer:
  default_root_dir: runs
  accelerator: cpu
  max_epochs: 2
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [{class_path: SaveAdapter}]
model:
  class_path: DPOModule
  init_args:
    policy: POLICY
    lora: {r: 4, alpha: 8, dropout: 0.2}
    loss: {class_path: synthalign.dpo.losses.DPO, init_args: {beta: 0.5}}
data:
  class_path: SyntheticPreferenceDataModule
  init_args: {pairs: set/pairs.json, batch_size: 1, seed: 2}
"""  # 8 pairs: 16 steps, or 8 of two batches
ACCUMULATE = ["--trainer.accumulate_grad_batches", "2"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llava: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["synthalign"])  # the command line writes it
    write_set(tmp_path / "set")
    Path("config.yaml").write_text(CONFIG.replace("POLICY", str(tiny_llava)))
    return tmp_path


def signal_from_one(**sent) -> None:
    """Write the overlay under which a process sends itself a signal."""
    callbacks = [{"class_path": "SaveAdapter"}, {"class_path": "resume.signaller.Signaller", "init_args": sent}]
    Path("signalled.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))


def fit(*flags: str, **sent) -> int:
    """Run ``fit``, with a signal if one is to be sent, and return the exit status."""
    configs = ["--config", "config.yaml"]
    if sent:
        signal_from_one(**sent)
        configs += ["--config", "signalled.yaml"]
    try:
        main(["fit", *configs, *flags])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def adapter(run: str) -> bytes:
    return Path("runs", run, "adapter", "adapter_model.safetensors").read_bytes()


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("synthalign: stopped")]
    return line


@pytest.mark.parametrize(
    ("sent", "status", "flags", "step"),
    [
        ({"name": "SIGTERM", "batch": 3}, 143, [], 4),
        ({"name": "SIGINT", "batch": 7}, 130, [], 8),  # the last step of an epoch
        ({"name": "SIGTERM", "batch": 4}, 143, ACCUMULATE, 3),  # between two batches of a step
    ],
    ids=["SIGTERM", "Ctrl-C", "while accumulating"],
)
def test_a_signal_ends_the_run_after_its_step_and_the_line_says_how_to_go_on(sent, status, flags, step, capsys):
    assert fit(*flags) == 0
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert fit(*flags, **sent) == status
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    line = the_line(capsys)
    epoch = (step - 1) // (4 if flags else 8)
    saved = f"runs/fit-2/checkpoints/stopped-epoch={epoch}-step={step}.ckpt"
    assert line.startswith(
        f"synthalign: stopped by {sent['name']}, saved {saved}; go on with: synthalign fit --config "
    )
    command = shlex.split(line.partition("go on with: synthalign ")[2])
    assert command[-2:] == ["--ckpt_path", saved]
    place = command.index("signalled.yaml")
    main([*command[: place - 1], *command[place + 1 :]])
    assert adapter("fit-3") == adapter("fit")
    assert not Path("runs/fit-2/adapter").exists() or step == 8


def test_a_signal_to_one_rank_stops_all_after_the_same_step(folder, tiny_llava):
    (folder / "llava").symlink_to(tiny_llava)
    signal_from_one(name="SIGTERM", batch=1, rank=1)
    done = run_script(str(TESTS / "resume" / "stopping_ranks.py"), str(folder))
    assert done.returncode == 0, done.stderr
    # 0 for the second, or Lightning would kill the first for it
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, 0], [143, 0], [0, 0]]
    assert [path.name for path in Path("runs/fit-2/checkpoints").iterdir()] == ["stopped-epoch=0-step=2.ckpt"]
    assert adapter("fit-3") == adapter("fit")


def test_a_second_ctrl_c_ends_the_run_at_once():
    assert fit(*ACCUMULATE, name="SIGINT", batch=2, twice=True) == 130
    assert not list(Path("runs/fit").glob("checkpoints/stopped*"))


@pytest.mark.parametrize("scontrol", ["works", "fails", "is missing"])
def test_slurms_signal_has_the_job_queued_again(scontrol, folder, monkeypatch, capsys):
    """The job's second life is the same command, by the overlay that ships."""
    for name, value in {"PROCID": 0, "LOCALID": 0, "NODEID": 0, "NTASKS": 1, "NTASKS_PER_NODE": 1}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NAME", "align")
    monkeypatch.setenv("MASTER_PORT", "0")  # which Lightning would set, and leave set
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    if scontrol != "is missing":
        tool = folder / "bin" / "scontrol"
        tool.parent.mkdir()
        tool.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\nexit {int(scontrol == "fails")}\n')
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    overlay = str(Path(__file__).parents[2] / "configs" / "slurm.yaml")
    code = fit("--config", overlay, name="SIGUSR1", batch=3)
    said = capsys.readouterr().err
    assert "starts from the beginning" in said
    if scontrol == "works":
        assert code == 0 and said.rstrip().endswith("step=4.ckpt; the job is queued again")
        assert (folder / "asked").read_text() == "requeue 4711\n"
        assert fit("--config", overlay) == 0
        assert "beginning" not in capsys.readouterr().err
        monkeypatch.delenv("SLURM_NTASKS")
        assert fit() == 0
        assert adapter("fit-2") == adapter("fit-3")
    else:
        assert code == 128 + signal.SIGUSR1
        assert "`scontrol requeue 4711` failed (" in said and "go on with: synthalign fit" in said
