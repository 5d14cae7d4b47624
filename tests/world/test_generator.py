from random import Random

import pytest
from PIL import Image

from synthalign.types import ImageGenerator, ImageRequest
from synthalign.world.generator import Renderer
from synthalign.world.language import describe, parse
from synthalign.world.render import render
from synthalign.world.scenes import HALF, sample

PROMPT = (
    "The image shows a kitchen with a red cup at the top-left, a blue pan at the left and a green car at the bottom."
)
RENDERER: ImageGenerator = Renderer()


def far(one: Image.Image, other: Image.Image) -> int:
    """Largest difference of the mean colors of two pictures' cells: noise and jitter are small in it."""
    means = (image.resize((3, 3), Image.Resampling.BOX).tobytes() for image in (one, other))
    return max(abs(a - b) for a, b in zip(*means, strict=True))


def test_the_same_request_gives_the_same_image_in_any_company():
    request, other = ImageRequest(PROMPT, 1, 5.0), ImageRequest(PROMPT, 2, 7.0)
    (alone,) = RENDERER.generate([request])
    together = RENDERER.generate([other, request, ImageRequest(PROMPT, 1, 5)])
    assert alone.tobytes() == together[1].tobytes() == together[2].tobytes()
    assert (alone.size, alone.mode) == ((48, 48), "RGB")


def test_prompt_seed_and_guidance_each_change_the_image():
    base = ImageRequest(PROMPT, 1, 5.0)
    others = [
        base._replace(prompt=PROMPT.replace("red", "black")),
        base._replace(seed=2),
        base._replace(guidance_scale=7.0),
    ]
    assert len({image.tobytes() for image in RENDERER.generate([base, *others])}) == 4


def test_a_faithful_renderer_draws_the_prompt():
    request = ImageRequest(PROMPT, 3, 5.0)
    faithful = Renderer(levels=(0.0,))
    assert faithful.imagine(request) == parse(PROMPT)
    (image,) = faithful.generate([request])
    assert far(image, render(parse(PROMPT), Random(0))) < 30


def test_objects_come_out_wrong_as_often_as_the_levels_say():
    rng = Random(0)
    right = total = 0
    for seed in range(1500):
        meant = sample(rng, HALF)
        drawn = Renderer().imagine(ImageRequest(describe(meant), seed, 5.0))
        right += len(set(meant.items) & set(drawn.items))
        total += len(meant.items)
    assert 1 - right / total == pytest.approx((0.05 + 0.15 + 0.3 + 0.5) / 4, abs=0.02)


def test_an_image_shows_the_scene_that_was_imagined():
    request = next(
        request
        for request in (ImageRequest(PROMPT, seed, 5.0) for seed in range(100))
        if Renderer().imagine(request) != parse(PROMPT)
    )
    (image,) = Renderer().generate([request])
    spoilt = render(Renderer().imagine(request), Random(0))
    assert far(image, spoilt) < 30 < far(image, render(parse(PROMPT), Random(0)))


def test_a_prompt_that_is_no_caption_is_refused():
    with pytest.raises(ValueError, match="cannot read the prompt 'a cat on a mat'"):
        RENDERER.generate([ImageRequest("a cat on a mat", 0, 5.0)])


@pytest.mark.parametrize("levels", [(), (1.5,), (0.1, -0.1)])
def test_levels_that_are_no_probabilities_are_refused(levels: tuple[float, ...]):
    with pytest.raises(ValueError, match="levels must be"):
        Renderer(levels=levels)
