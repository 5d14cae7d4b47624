"""Images shrink to a budget, from the sizes that are wanted down, and what was saved is said."""

import base64
import io

import numpy as np
import pytest
from landed import png
from PIL import Image

from synthalign.pages.joined import Picture
from synthalign.pages.pictures import SIZES, Budget, Size, jpeg, page_of, small, written


def noise(seed: int, side: int = 400) -> bytes:
    """An image that compresses badly."""
    coarse = np.random.default_rng(seed).integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((side, side)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def pictures(number: int) -> list[Picture]:
    """Pictures of three candidates, the second one best."""
    images = [noise(seed) for seed in range(3)]
    blank = {"seed": 2**60, "guidance_scale": 5.0, "score": 1.0, "scores": []}
    return [Picture(n, [blank | {"image": image} for image in images], 1) for n in range(number)]


def sides(page: dict) -> list[int]:
    """The longer sides of a page's images, 0 where one is left out."""
    contents = [one["image"] and base64.b64decode(one["image"]) for one in page["candidates"]]
    return [max(Image.open(io.BytesIO(content)).size) if content else 0 for content in contents]


def test_the_best_image_is_larger_than_the_others():
    [picture] = pictures(1)
    assert sides(small(picture, SIZES[0])) == [160, 384, 160]
    assert sides(small(picture, SIZES[-2])) == [0, 64, 0]
    assert sides(small(picture, Size(0, 0, 0))) == [0, 0, 0]


def test_a_small_original_is_not_enlarged():
    content = jpeg(png((0, 200, 0), 40), 384, 70)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.size, image.format) == ((40, 40), "JPEG")


def test_seeds_survive_javascript():
    assert small(pictures(1)[0], SIZES[0])["candidates"][0]["seed"] == str(2**60)


def test_a_wide_budget_saves_nothing():
    budget = Budget(50e6, 4, pictures(1), page_of)
    assert len(list(written(pictures(4), budget))) == 4
    assert budget.used == {SIZES[0]: 4} and budget.note() == ""


@pytest.mark.parametrize("share", [0.7, 0.3, 0.1, 0.03])
def test_a_narrow_budget_is_kept_and_said(share):
    [one] = pictures(1)
    wanted = len(str(small(one, SIZES[0]))) * 20
    budget = Budget(share * wanted, 20, [one], page_of)
    pages = [page for _, page in written(pictures(20), budget)]
    assert len(pages) == 20
    assert sum(map(len, pages)) <= share * wanted
    assert budget.used.total() == 20 and SIZES[-1] not in budget.used
    assert budget.note().startswith("To stay within the size limit, ")


def test_where_there_is_no_room_at_all_images_are_left_out_and_counted():
    budget = Budget(1000, 20, pictures(1), page_of)
    least = budget.least
    pages = [page for _, page in written(pictures(20), budget)]
    assert sum(map(len, pages)) == least
    assert "20 of the best images and their losing ones are left out" in budget.note()


def test_what_is_no_image_is_refused_in_a_line():
    with pytest.raises(ValueError, match="a drawn image cannot be read"):
        jpeg(b"no image", 100, 70)
