from itertools import combinations
from random import Random

import numpy as np

from synthalign.world.render import CELL, GROUND, NOISE, PAINT, SIZE, icon, render
from synthalign.world.scenes import COLORS, OBJECTS, THEMES, Item, scene

SEEN = scene("kitchen", [Item("plate", "blue", 4)])


def test_a_picture_is_48_pixels_of_rgb():
    picture = render(SEEN, Random(0))
    assert picture.size == (SIZE, SIZE) == (48, 48)
    assert picture.mode == "RGB"


def test_the_same_seed_gives_the_same_picture_and_another_seed_other_noise():
    assert render(SEEN, Random(1)).tobytes() == render(SEEN, Random(1)).tobytes()
    assert render(SEEN, Random(1)).tobytes() != render(SEEN, Random(2)).tobytes()


def test_every_theme_has_a_ground_and_every_color_a_paint():
    assert set(GROUND) == set(THEMES)
    assert set(PAINT) == set(COLORS)


def test_an_object_colors_its_own_cell_and_no_cell_further_off():
    pixels = np.asarray(render(SEEN, Random(0)), np.float32)
    rim = pixels[23:26, 17:20].mean((0, 1))  # the left rim of the plate, wherever the jitter puts it
    assert np.abs(rim - PAINT["blue"]).max() < 40
    outside = np.ones((SIZE, SIZE), bool)
    outside[CELL - 1 : 2 * CELL + 1, CELL - 1 : 2 * CELL + 1] = False
    assert np.abs(pixels[outside].mean(0) - GROUND["kitchen"]).max() < 1
    assert np.abs(pixels[outside] - GROUND["kitchen"]).max() < 6 * NOISE


def test_no_two_icons_look_alike():
    masks = {kind: np.concatenate([part.ravel() for part in icon(kind)]) for kind in OBJECTS}
    for one, other in combinations(OBJECTS, 2):
        assert np.abs(masks[one] - masks[other]).sum() > 0.1 * CELL * CELL, (one, other)


def test_every_icon_stays_within_opacity():
    for kind in OBJECTS:
        body, detail = icon(kind)
        assert body.shape == detail.shape == (CELL, CELL, 1)
        assert 0 <= min(body.min(), detail.min()) and max(body.max(), detail.max()) <= 1
        assert body.sum() > 0.1 * CELL * CELL
