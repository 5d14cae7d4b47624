"""The command line in a process of its own, which starts the other ranks."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def fit(folder: Path, *flags: str) -> None:
    """Run ``synthalign fit`` with a folder's config.yaml; the parts of tests/ can be named in it."""
    done = subprocess.run(
        [sys.executable, "-m", "synthalign", "fit", "--config", "config.yaml", *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
