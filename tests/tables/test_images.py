"""Images: opened as RGB whatever they are, or refused in one line."""

import io
import random

import numpy as np
import pytest
from pair_files import BLUE, RED, png
from PIL import Image

from synthalign.tables import image_in, open_image
from synthalign.tables.images import verify


def test_a_link_out_of_the_image_folder_is_refused_and_one_into_the_hubs_blobs_is_not(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    (blobs / "abcd").write_bytes(png(RED))
    (snapshot / "red.png").symlink_to(blobs / "abcd")
    assert image_in(snapshot, "red.png", "row 1") == snapshot / "red.png"
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "red.png").symlink_to(blobs / "abcd")
    with pytest.raises(ValueError, match=r"^row 1: image 'red\.png' leads out of its folder"):
        image_in(tmp_path / "plain", "red.png", "row 1")


@pytest.mark.parametrize("name", ["a" * 5000, "x/" * 3000, "circle/red.png"])
def test_a_name_that_can_be_no_path_is_one_short_line(name, tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ValueError, match=r"^row 1: '.+' cannot be the path of an image \(.+\)$") as caught:
        image_in(tmp_path, name, "row 1")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("content", [b"", b"text", png(RED, (64, 64))[:60]])
def test_open_image_says_what_cannot_be_read(content, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"^image cannot be read: .*x\.png \(.+\)$"):
        open_image(tmp_path / "x.png")


def reopened(image: Image.Image, format: str, **settings: object) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, format, **settings)
    return open_image(io.BytesIO(stream.getvalue()), "row 1")


def test_open_image_gives_rgb(tmp_path):
    Image.new("P", (3, 2), 0).save(tmp_path / "x.gif")
    assert (open_image(tmp_path / "x.gif").mode, open_image(tmp_path / "x.gif").size) == ("RGB", (3, 2))


def test_what_is_transparent_shows_white():
    clear, half = Image.new("RGBA", (3, 2), (0, 0, 0, 0)), Image.new("RGBA", (3, 2), (0, 0, 0, 127))
    assert reopened(clear, "PNG").getpixel((0, 0)) == (255, 255, 255)
    assert reopened(half, "PNG").getpixel((0, 0)) == (128, 128, 128)
    assert reopened(Image.new("LA", (3, 2), (0, 0)), "PNG").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (3, 2), 0)
    palette.putpalette([*RED, 0, 0, 0])
    assert reopened(palette, "PNG").getpixel((0, 0)) == RED
    assert reopened(palette, "PNG", transparency=0).getpixel((0, 0)) == (255, 255, 255)
    assert reopened(palette, "PNG", transparency=b"\x00\xff").getpixel((0, 0)) == (255, 255, 255)


def test_of_sixteen_bits_of_grey_the_upper_eight_are_kept():
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    image = reopened(Image.fromarray(values), "PNG")
    assert [image.getpixel((x, 0)) for x in range(5)] == [(v, v, v) for v in (0, 0, 1, 128, 255)]


def test_of_an_animation_the_first_frame_is_shown():
    frames = [Image.new("RGB", (3, 2), color) for color in (RED, BLUE)]
    assert reopened(frames[0], "PNG", save_all=True, append_images=frames[1:]).getpixel((0, 0)) == RED
    assert reopened(frames[0], "GIF", save_all=True, append_images=frames[1:]).getpixel((0, 0)) == RED


def test_four_inks_are_seen_as_colours():
    assert reopened(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF").getpixel((0, 0)) == (0, 255, 255)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_known_range_are_refused(mode, tmp_path):
    Image.new(mode, (3, 2), 7).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=rf"x\.tif \(the range of its '{mode}' pixels is unknown: save it with 8 bits"):
        open_image(tmp_path / "x.tif")


def test_an_orientation_in_exif_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    assert reopened(Image.new("RGB", (30, 20)), "JPEG", exif=exif).size == (30, 20)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about metadata it cannot read
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_damage_anywhere_is_one_line_or_none(format):
    stream, dice = io.BytesIO(), random.Random(format)
    Image.effect_noise((40, 30), 50).convert("RGB").save(stream, format)
    refused = 0
    for trial in range(200):
        content = bytearray(stream.getvalue())
        if trial % 2:
            content = content[: 1 + dice.randrange(len(content))]
        for _ in range(dice.randrange(1, 8)):
            content[dice.randrange(len(content))] = dice.randrange(256)
        for ask in (open_image, verify):
            try:
                ask(io.BytesIO(bytes(content)), "row 1")
            except ValueError as error:
                assert str(error).startswith("image ") and "row 1" in str(error) and "\n" not in str(error)
                refused += 1
    assert refused > 50


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_whatever_is_cut_short_is_refused_before_training_if_it_would_be_refused_in_it(format):
    stream = io.BytesIO()
    Image.effect_noise((40, 30), 50).convert("RGB").save(stream, format)
    verify(io.BytesIO(stream.getvalue()), "row 1")
    size = len(stream.getvalue())
    for cut in range(0, size, max(1, size // 60)):
        content = stream.getvalue()[:cut]
        try:
            open_image(io.BytesIO(content), "row 1")
        except ValueError:
            with pytest.raises(ValueError, match=r"row 1"):
                verify(io.BytesIO(content), "row 1")
