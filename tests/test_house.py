"""The doors of the repository open: make's targets, the command, and the script that continuous integration runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = {"clean", "demo", "help", "lint", "prove", "test", "world"}


def _make(*arguments: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of the make around us
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_alone_explains_every_target():
    assert set(re.findall(r"^  ([a-z]+) +\S", _make(), flags=re.MULTILINE)) == TARGETS
    assert _make() == _make("help")


@pytest.mark.parametrize("target", sorted(TARGETS - {"clean", "help"}))
def test_a_target_installs_what_it_needs_before_it_runs(target, tmp_path):
    steps = _make("--dry-run", target, f"VENV={tmp_path}/env", "PYTHON=python3.99").splitlines()
    made = next(i for i, step in enumerate(steps) if "python3.99 -m venv" in step)
    installed = next(i for i, step in enumerate(steps) if "install -q -c constraints.txt -e" in step)
    used = next(i for i, step in enumerate(steps) if step.startswith(f"{tmp_path}/env/bin/") and " pip " not in step)
    assert made < installed < used


def test_the_files_that_make_runs_are_there():
    named = set(re.findall(r"\b((?:configs|benchmarks)/\S+\.(?:py|yaml))", (ROOT / "Makefile").read_text("utf-8")))
    assert named == {"benchmarks/prove.py", "configs/demo.yaml", "configs/demo_heldout.yaml"}
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_ci_runs_from_anywhere_and_stops_at_the_first_failure():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text("utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines.index("set -euo pipefail") < lines.index('cd "$(dirname "$0")/.."') < lines.index("make lint")
    assert lines[-1] == "make test"


def test_the_command_and_the_module_are_the_same_door():
    command = Path(sys.executable).with_name("synthalign")
    by_name, by_module = (
        subprocess.run([*start, "--help"], capture_output=True, text=True, check=False)
        for start in ([str(command)], [sys.executable, "-m", "synthalign"])
    )
    assert by_name.returncode == 0, by_name.stderr
    assert by_name.stdout.startswith("usage: synthalign")
    assert by_name.stdout == by_module.stdout
