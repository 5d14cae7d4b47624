"""A run that is told to stop saves itself after the step, says how to go on, and then ends as if never stopped."""

import json
import shlex
import signal
import sys
from pathlib import Path

import pytest
import torch
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
        ({"names": ["SIGTERM"], "batch": 3}, 143, [], 4),
        ({"names": ["SIGINT"], "batch": 7}, 130, [], 8),  # the last step of an epoch
        ({"names": ["SIGTERM"], "batch": 4}, 143, ACCUMULATE, 3),  # between two batches of a step
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
        f"synthalign: stopped by {sent['names'][0]}, saved {saved}; go on with: synthalign fit --config "
    )
    command = shlex.split(line.partition("go on with: synthalign ")[2])
    assert command[-2:] == ["--ckpt_path", saved]
    place = command.index("signalled.yaml")
    main([*command[: place - 1], *command[place + 1 :]])
    assert adapter("fit-3") == adapter("fit")
    assert not Path("runs/fit-2/adapter").exists() or step == 8


def test_a_signal_to_one_rank_stops_all_after_the_same_step(folder, tiny_llava):
    (folder / "llava").symlink_to(tiny_llava)
    signal_from_one(names=["SIGTERM"], batch=1, rank=1)
    done = run_script(str(TESTS / "resume" / "stopping_ranks.py"), str(folder))
    assert done.returncode == 0, done.stderr
    # 0 for the second, or Lightning would kill the first for it
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, 0], [143, 0], [0, 0]]
    assert [path.name for path in Path("runs/fit-2/checkpoints").iterdir()] == ["stopped-epoch=0-step=2.ckpt"]
    assert adapter("fit-3") == adapter("fit")


def test_a_run_that_is_stopped_has_saved_what_else_was_due_after_its_step():
    signal_from_one(names=["SIGTERM"], batch=1)
    overlay = yaml.safe_load(Path("signalled.yaml").read_text())
    every = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    best = {"every_n_train_steps": 1, "monitor": "step", "mode": "max", "filename": "best"}
    overlay["trainer"]["callbacks"] += [{"class_path": "ModelCheckpoint", "init_args": one} for one in (every, best)]
    Path("more.yaml").write_text(yaml.safe_dump(overlay))
    assert fit("--config", "more.yaml") == 143
    folder = Path("runs/fit/checkpoints")
    assert {path.stem for path in folder.iterdir()} == {"step=1", "step=2", "best", "stopped-epoch=0-step=2"}
    for name in ("step=2", "stopped-epoch=0-step=2"):  # whichever a run goes on from knows the best
        states = torch.load(folder / f"{name}.ckpt", weights_only=True)["callbacks"].values()
        assert [state["best_model_score"].item() for state in states if state.get("monitor")] == [2]


def test_a_second_ctrl_c_ends_the_run_at_once():
    assert fit(*ACCUMULATE, names=["SIGINT", "SIGINT"], batch=2) == 130
    assert not list(Path("runs/fit").glob("checkpoints/stopped*"))


@pytest.fixture
def scontrol(folder, monkeypatch) -> Path:
    """Be a job of SLURM's, and put a tool in the path that writes down what is asked of it; it can be replaced."""
    for name, value in {"PROCID": 0, "LOCALID": 0, "NODEID": 0, "NTASKS": 1, "NTASKS_PER_NODE": 1}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NAME", "align")
    monkeypatch.setenv("MASTER_PORT", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    tool = folder / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    return tool


SLURM = ["--config", str(Path(__file__).parents[2] / "configs" / "slurm.yaml")]


def test_slurms_signal_has_the_job_queued_again(scontrol, folder, monkeypatch, capsys):
    """The job's second life is the same command, by the overlay that ships."""
    # SIGTERM follows where the time runs out
    assert fit(*SLURM, *ACCUMULATE, names=["SIGUSR1", "SIGTERM"], batch=2) == 0
    said = capsys.readouterr().err
    assert "starts from the beginning" in said
    assert said.rstrip().endswith("step=2.ckpt; the job is queued again")
    assert (folder / "asked").read_text() == "requeue 4711\n"
    assert fit(*SLURM, *ACCUMULATE) == 0
    said = capsys.readouterr().err
    assert "going on from runs/fit/checkpoints/stopped-epoch=0-step=2.ckpt (step 2)" in said
    monkeypatch.delenv("SLURM_NTASKS")
    assert fit(*ACCUMULATE) == 0
    assert adapter("fit-2") == adapter("fit-3")


@pytest.mark.parametrize("tool", ["fails", "is missing"])
def test_where_the_job_cannot_be_queued_again_the_way_on_is_told(tool, scontrol, capfd):
    scontrol.unlink()
    if tool == "fails":
        scontrol.write_text("#!/bin/sh\nexit 1\n")
        scontrol.chmod(0o755)
    assert fit(*SLURM, names=["SIGUSR1"], batch=3) == 128 + signal.SIGUSR1
    said = capfd.readouterr().err
    assert "`scontrol requeue 4711` failed (" in said and "go on with: synthalign fit" in said


def test_slurms_signal_before_training_has_the_job_queued_again_with_nothing_saved(scontrol, folder, capfd):
    assert fit(*SLURM, names=["SIGUSR1"], hook="setup") == 0
    assert (folder / "asked").read_text() == "requeue 4711\n"
    assert "the job is queued again" in capfd.readouterr().err
    assert not list(Path("runs").rglob("*.ckpt"))


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_signal_while_the_model_is_evaluated_before_its_first_step_is_ours_to_handle(name, scontrol):
    """Lightning's own handler would save within it, under another name."""
    assert fit(*SLURM, names=[name], hook="on_train_start") == (0 if name == "SIGUSR1" else 128 + signal.SIGTERM)
    assert [path.name for path in Path("runs").rglob("*.ckpt")] == ["stopped-epoch=0-step=1.ckpt"]
