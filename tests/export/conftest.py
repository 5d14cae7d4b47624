"""A run to export, a new copy for every test."""

import shutil

import pytest
from exported_runs import write_run


@pytest.fixture(scope="module")
def original(tiny_llava, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "fit"
    write_run(folder, tiny_llava)
    return folder


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "fit")
