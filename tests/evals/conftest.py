"""A folder of small images, each one plain shade of grey."""

from pathlib import Path

import pytest
from PIL import Image

SHADES = {f"{shade:03d}.png": shade for shade in range(10, 90, 10)}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, shade in SHADES.items():
        Image.new("RGB", (4, 4), (shade, shade, shade)).save(folder / name)
    return folder
