"""A run that is killed goes on exactly: a few of the kills that benchmarks/kill.py makes many of."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill.py"


@pytest.mark.parametrize(
    ("num_ranks", "moments"),
    [
        ((1, 2), 1),
        pytest.param((1,), 20, marks=pytest.mark.prove),
        pytest.param((2,), 20, marks=pytest.mark.prove),
    ],
)
def test_killed_runs_end_with_the_losses_and_the_adapter_of_an_undisturbed_one(num_ranks, moments, tmp_path):
    flags = ["--moments", str(moments), "--ranks", *map(str, num_ranks), "--out", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags], capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    for number in num_ranks:
        fell = r"\d+ (training|evaluating|writing a checkpoint)"
        line = rf"^{number} ranks: {moments} kills \({fell}(, {fell})*\); all went on exactly"
        assert re.search(line, done.stdout, re.MULTILINE)
