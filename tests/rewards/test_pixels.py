"""Images become squares as the models' own transforms make them; the golden scores hold them to that, too."""

import pytest
import torch
from PIL import Image

from synthalign.rewards.pixels import MEAN, STD, cut_square, whole_square


def colors(pixels: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation: values in [0, 1]."""
    return pixels * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


def stripes(width: int, height: int) -> Image.Image:
    """Red to the left, green in the middle, blue to the right."""
    image = Image.new("RGB", (width, height), (0, 255, 0))
    image.paste((255, 0, 0), (0, 0, width // 4, height))
    image.paste((0, 0, 255), (width - width // 4, 0, width, height))
    return image


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (8, 16), (7, 23), (300, 2), (1, 1)])
def test_both_give_a_square(size):
    image = Image.new("RGB", size, "white")
    for pixels in (cut_square(image, 8), whole_square(image, 8, antialias=True)):
        assert pixels.shape == (3, 8, 8) and pixels.isfinite().all()
    torch.testing.assert_close(colors(cut_square(image, 8)), torch.ones(3, 8, 8))


def test_a_cut_square_leaves_out_the_sides():
    got = colors(cut_square(stripes(32, 16), 16))
    torch.testing.assert_close(got[1, :, 2:-2], torch.ones(16, 12), atol=0.01, rtol=0)
    assert (got[[0, 2], :, 4:-4].abs() < 0.01).all()


@pytest.mark.parametrize("antialias", [True, False])
def test_a_whole_square_keeps_the_sides_and_is_black_beyond(antialias):
    got = colors(whole_square(stripes(32, 16), 16, antialias=antialias))
    assert (got[:, :4].abs() < 1e-6).all() and (got[:, 12:].abs() < 1e-6).all()
    torch.testing.assert_close(got[:, 8, [1, 8, 14]], torch.eye(3), atol=0.06, rtol=0)


def test_an_image_of_the_right_size_stays_as_it_is():
    image = Image.effect_noise((8, 8), 80).convert("RGB")
    for pixels in (cut_square(image, 8), whole_square(image, 8, antialias=True)):
        values = (colors(pixels).permute(1, 2, 0).reshape(-1, 3) * 255).round()
        assert [tuple(map(int, value)) for value in values] == [image.getpixel((n % 8, n // 8)) for n in range(64)]


def test_an_image_without_colors_has_three_channels():
    assert cut_square(Image.new("L", (9, 9), 7), 8).shape == (3, 8, 8)
    assert whole_square(Image.new("L", (9, 9), 7), 8, antialias=True).shape == (3, 8, 8)
