"""The runs of several ranks, made once for all tests of them."""

from pathlib import Path
from subprocess import CompletedProcess

import pytest
import several_ranks
from forked import run_script


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory, tiny_llava: Path) -> tuple[Path, CompletedProcess[str]]:
    """Let one, two and three ranks sit the same evaluations; give the folder of their runs, and what they said."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "llava").symlink_to(tiny_llava)
    several_ranks.write(folder)
    done = run_script(several_ranks.__file__, str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture
def folder(several: tuple[Path, CompletedProcess[str]]) -> Path:
    return several[0]
