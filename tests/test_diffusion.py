"""A request fixes its image; real tiny pipelines of four families, loaded as their users would."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_pipelines
import torch
from PIL import ImageChops
from PIL.Image import Image

from synthalign.batching import noting_halvings
from synthalign.diffusion import DiffusionGenerator
from synthalign.types import ImageRequest

PROMPTS = ("a red cup", "two dogs and a chair", "")
Make = Callable[..., DiffusionGenerator]


@pytest.fixture(scope="module")
def tiny_sdxl(tiny_sd, tiny_sd3, tmp_path_factory):
    return tiny_pipelines.build_sdxl(tmp_path_factory.mktemp("sdxl"), tiny_sd, tiny_sd3)


@pytest.fixture(scope="module")
def tiny_flux(tiny_sd, tiny_sd3, tmp_path_factory):
    return tiny_pipelines.build_flux(tmp_path_factory.mktemp("flux"), tiny_sd, tiny_sd3)


@pytest.fixture(scope="module", params=["sd", "sd3", "sdxl", "flux"])
def make(request: pytest.FixtureRequest) -> Make:
    """Make generators of one family; what is not asked for otherwise is small."""
    folder = str(request.getfixturevalue(f"tiny_{request.param}"))
    without = ("text_encoder_3", "tokenizer_3") if request.param == "sd3" else ()

    def build(**settings: Any) -> DiffusionGenerator:
        size = {"height": tiny.DRAWING_SIZE, "width": tiny.DRAWING_SIZE}
        return DiffusionGenerator(model=folder, without=without, **(size | {"num_inference_steps": 2} | settings))

    return build


@pytest.fixture(scope="module")
def generator(make: Make) -> DiffusionGenerator:
    return make()


def requests_for(scales: tuple[float, ...] = (5.0,)) -> list[ImageRequest]:
    return [ImageRequest(prompt, seed, scale) for scale in scales for seed, prompt in enumerate(PROMPTS)]


def content(images: list[Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def difference(one: Image, other: Image) -> int:
    """The largest difference of any pixel's channel, grey levels of 255."""
    return int(np.asarray(ImageChops.difference(one, other)).max())


def test_images_are_rgb_of_the_size_asked_for(generator, make):
    image = generator.generate(requests_for())[0]
    assert (image.mode, image.size) == ("RGB", (tiny.DRAWING_SIZE, tiny.DRAWING_SIZE))
    wide = make(height=16, width=32).generate(requests_for())[0]
    assert wide.size == (32, 16)


def test_the_same_call_gives_the_same_images_whatever_was_drawn_before(generator):
    first = content(generator.generate(requests_for()))
    torch.manual_seed(5)
    generator.generate([ImageRequest("other", 9, 7.0)])
    assert content(generator.generate(requests_for())) == first
    assert len(set(first)) == len(first)


def test_drawing_leaves_the_global_random_state_alone(generator):
    before = torch.get_rng_state()
    generator.generate(requests_for())
    assert torch.equal(torch.get_rng_state(), before)


def test_prompt_seed_and_guidance_each_change_the_image(generator):
    base = ImageRequest("a red cup", 0, 5.0)
    drawn = generator.generate([base])[0]
    for other in (base._replace(prompt="two dogs"), base._replace(seed=1), base._replace(guidance_scale=9.0)):
        assert generator.generate([other])[0].tobytes() != drawn.tobytes(), other


def test_a_steps_or_a_negative_prompts_change_changes_the_image(generator, make):
    base = content(generator.generate(requests_for()))
    negative = {"negative_prompt": "a dog"} | ({"guidance": "true_cfg_scale"} if "flux" in generator.model else {})
    for change in ({"num_inference_steps": 3}, negative):
        other = content(make(**change).generate(requests_for()))
        assert all(a != b for a, b in zip(base, other, strict=True)), change


def test_an_image_does_not_depend_on_its_batch_but_in_its_last_bits(generator, make):
    wanted = requests_for((5.0, 9.0))
    together = generator.generate(wanted)
    for batch_size in (1, 2):
        apart = make(batch_size=batch_size).generate(wanted)
        assert max(difference(*pair) for pair in zip(together, apart, strict=True)) <= 1
    reverse = generator.generate(wanted[::-1])[::-1]
    assert max(difference(*pair) for pair in zip(together, reverse, strict=True)) <= 1


def test_requests_of_different_guidance_are_each_drawn_with_their_own(generator):
    mixed = [ImageRequest("a red cup", 0, scale) for scale in (5.0, 9.0, 5.0)]
    first, second, third = generator.generate(mixed)
    assert difference(first, third) == 0
    assert difference(first, second) > 1
    assert difference(second, generator.generate([mixed[1]])[0]) <= 1


def test_an_image_is_what_the_pipeline_draws_with_a_generator_of_that_seed(generator, make):
    request = ImageRequest("a red cup", 7, 6.0)
    plain = make().pipeline(
        "a red cup",
        num_inference_steps=2,
        guidance_scale=6.0,
        height=tiny.DRAWING_SIZE,
        width=tiny.DRAWING_SIZE,
        generator=torch.Generator().manual_seed(7),
    )
    assert generator.generate([request])[0].tobytes() == plain.images[0].tobytes()


def test_a_pipeline_that_knows_no_negative_prompt_draws_and_refuses_one(tiny_sd, tmp_path):
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    parts = dict(StableDiffusionPipeline.from_pretrained(tiny_sd).components)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts["unet"] = UNet2DConditionModel.from_config(dict(parts["unet"].config) | {"time_cond_proj_dim": 8})
    parts["scheduler"] = LCMScheduler.from_config(parts["scheduler"].config)
    LatentConsistencyModelPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path)
    size = {"height": tiny.DRAWING_SIZE, "width": tiny.DRAWING_SIZE, "num_inference_steps": 2}
    drawn = DiffusionGenerator(model=str(tmp_path), **size).generate(requests_for())
    assert len(set(content(drawn))) == len(PROMPTS)
    refusing = DiffusionGenerator(model=str(tmp_path), negative_prompt="a dog", **size)
    with pytest.raises(ValueError, match="LatentConsistencyModelPipeline takes no negative_prompt, got 'a dog'"):
        refusing.generate(requests_for())


def test_a_negative_prompt_that_flux_would_ignore_is_refused(tiny_flux):
    generator = DiffusionGenerator(model=str(tiny_flux), negative_prompt="a dog")
    with pytest.raises(ValueError, match="FluxPipeline heeds a negative_prompt only with guidance: true_cfg_scale"):
        generator.generate(requests_for())


def test_flux_with_true_guidance_is_drawn_as_its_pipeline_draws_it(tiny_flux):
    size = {"height": tiny.DRAWING_SIZE, "width": tiny.DRAWING_SIZE, "num_inference_steps": 2}
    generator = DiffusionGenerator(model=str(tiny_flux), negative_prompt="a dog", guidance="true_cfg_scale", **size)
    image = generator.generate([ImageRequest("a red cup", 7, 4.0)])[0]
    noise = torch.Generator().manual_seed(7)
    plain = generator.pipeline("a red cup", negative_prompt="a dog", true_cfg_scale=4.0, generator=noise, **size)
    assert image.tobytes() == plain.images[0].tobytes()


def test_a_guidance_that_the_pipeline_does_not_take_is_refused(tiny_sd):
    generator = DiffusionGenerator(model=str(tiny_sd), guidance="true_cfg_scale")
    with pytest.raises(ValueError, match="StableDiffusionPipeline takes no true_cfg_scale: see the field guidance"):
        generator.generate(requests_for())


def test_a_batch_too_large_for_the_memory_is_halved_and_each_image_is_still_its_requests(make):
    wanted = requests_for((5.0, 9.0))
    alone = make(batch_size=1).generate(wanted)
    short = make(batch_size=3)
    decoder, decode = short.pipeline.vae, short.pipeline.vae.decode

    def decode_one(latents, *args, **kwargs):
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(latents, *args, **kwargs)

    decoder.decode = decode_one
    with noting_halvings() as notes:
        drawn = short.generate(wanted)
    assert content(drawn) == content(alone)
    # Three requests of each guidance: 3 at once fail, then one at a time.
    assert notes == 2 * ["DiffusionGenerator: out of memory with 3 rows at once, went on with 1"]


def test_images_that_a_safety_checker_makes_black_are_named_in_the_log(tiny_sd, tmp_path, caplog):
    folder = tiny_pipelines.build_flagging(tmp_path, tiny_sd)
    size = {"height": tiny.DRAWING_SIZE, "width": tiny.DRAWING_SIZE, "num_inference_steps": 2}
    with caplog.at_level(logging.WARNING, "synthalign"):
        drawn = DiffusionGenerator(model=str(folder), **size).generate(requests_for())
    assert {difference(image, image.point(lambda _: 0)) for image in drawn} == {0}
    assert [record.getMessage() for record in caplog.records if record.name.startswith("synthalign")] == [
        f"the safety checker of {folder} made 3 of 3 images black: 'a red cup', 'two dogs and a chair', ''"
    ]
    caplog.clear()
    unchecked = DiffusionGenerator(model=str(folder), without=("safety_checker",), **size).generate(requests_for())
    assert content(unchecked) == content(DiffusionGenerator(model=str(tiny_sd), **size).generate(requests_for()))
    assert not [record for record in caplog.records if record.name.startswith("synthalign")]


def test_a_seed_may_have_sixty_four_bits(generator):
    first, last = (ImageRequest("a red cup", seed, 5.0) for seed in (2**63, 2**64 - 1))
    assert generator.generate([first])[0].tobytes() != generator.generate([last])[0].tobytes()


def test_no_requests_draw_nothing_and_load_nothing(make):
    fresh = make()
    assert fresh.generate([]) == []
    assert "pipeline" not in vars(fresh)


def test_a_component_that_was_not_saved_must_be_left_out(tiny_sd3):
    with pytest.raises(ValueError, match="cannot be loaded as AutoPipelineForText2Image"):
        _ = DiffusionGenerator(model=str(tiny_sd3)).pipeline


@pytest.mark.parametrize("change", [{"num_inference_steps": 0}, {"batch_size": 0}])
def test_settings_that_cannot_be_meant_are_refused(change, make):
    with pytest.raises(ValueError, match="must be >= 1"):
        make(**change)
