"""Names that no file can have are refused in words, as files that are not there are."""

from pathlib import Path

import pytest

from synthalign.tables import read_pairs
from synthalign.tables.images import image_in
from synthalign.weights import check_folder


def test_a_set_of_too_long_a_name():
    with pytest.raises(ValueError, match=r"^no pairs at 'x{60}': that cannot be a path$"):
        read_pairs(Path("x" * 5000))


def test_a_folder_of_images_that_cannot_be_one(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^row 1: 'a.x00b/red.png' cannot be the path of an image$"):
        image_in(Path("a\0b"), "red.png", "row 1")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_model_of_a_name_that_no_folder_has(name: str):
    with pytest.raises(ValueError, match="no model folder at"):
        check_folder(name)
