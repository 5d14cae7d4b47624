"""A CLIP-type reward is its formula, for each image on its own."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from synthalign.batching import noting_halvings
from synthalign.rewards.clip import CLIPReward

PROMPTS = ["a red cup", "two dogs and a chair on a long table", "a red cup", "x"]
IMAGES = [Image.new("RGB", (40, 30), color) for color in ("red", "blue", "green", "white")]
LONG = "a red cup and " * 40  # each letter is a token: far beyond 77


def test_a_score_is_the_formula_written_out(tiny_clip):
    from transformers import AutoProcessor, CLIPModel

    processor, model = AutoProcessor.from_pretrained(tiny_clip), CLIPModel.from_pretrained(tiny_clip).eval()
    expected = []
    for prompt, image in zip(PROMPTS, IMAGES, strict=True):
        with torch.no_grad():
            text = model.get_text_features(**processor(text=[prompt], return_tensors="pt")).pooler_output[0]
            seen = model.get_image_features(**processor(images=[image], return_tensors="pt")).pooler_output[0]
        cosine = (text * seen).sum() / ((text**2).sum() ** 0.5 * (seen**2).sum() ** 0.5)
        expected.append((2.718281828459045 ** model.logit_scale.item() * cosine).item())
    scores = CLIPReward(model=str(tiny_clip)).score(PROMPTS, IMAGES)
    assert (scores.shape, scores.dtype) == ((4,), torch.float32)
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert len({round(score, 3) for score in expected}) == 4


def test_a_score_is_the_diagonal_of_the_models_own_logits(tiny_clip):
    from transformers import AutoProcessor, CLIPModel

    processor, model = AutoProcessor.from_pretrained(tiny_clip), CLIPModel.from_pretrained(tiny_clip).eval()
    with torch.no_grad():
        inputs = processor(text=PROMPTS, images=IMAGES, padding=True, return_tensors="pt")
        logits = model(**inputs).logits_per_image
    torch.testing.assert_close(CLIPReward(model=str(tiny_clip)).score(PROMPTS, IMAGES), logits.diagonal())


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_score_depends_neither_on_order_nor_on_the_batch(batch_size, tiny_clip):
    expected = CLIPReward(model=str(tiny_clip)).score(PROMPTS, IMAGES)
    order = [2, 0, 3, 1]
    reward = CLIPReward(model=str(tiny_clip), batch_size=batch_size)
    got = reward.score([PROMPTS[row] for row in order], [IMAGES[row] for row in order])
    torch.testing.assert_close(got, expected[order])


def test_a_long_prompt_is_cut_and_does_not_disturb_its_neighbours(tiny_clip):
    reward = CLIPReward(model=str(tiny_clip))
    together = reward.score([LONG, *PROMPTS[1:]], IMAGES)
    torch.testing.assert_close(together[1:], reward.score(PROMPTS[1:], IMAGES[1:]))
    torch.testing.assert_close(together[0], reward.score([LONG + "of gold"], IMAGES[:1])[0])
    assert together[0] != reward.score(["of gold" + LONG], IMAGES[:1])[0]


def test_the_processor_may_be_in_another_folder(tiny_clip, tmp_path: Path):
    """As PickScore's is."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_clip / name, tmp_path / name)
    expected = CLIPReward(model=str(tiny_clip)).score(PROMPTS, IMAGES)
    apart = CLIPReward(model=str(tmp_path), processor=str(tiny_clip))
    assert torch.equal(apart.score(PROMPTS, IMAGES), expected)
    with pytest.raises(ValueError, match="cannot be loaded as AutoProcessor"):
        CLIPReward(model=str(tmp_path)).score(PROMPTS, IMAGES)


def test_half_precision_scores_nearly_the_same(tiny_clip):
    half = CLIPReward(model=str(tiny_clip), dtype="bfloat16").score(PROMPTS, IMAGES)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, CLIPReward(model=str(tiny_clip)).score(PROMPTS, IMAGES), atol=0.5, rtol=0.05)


def test_a_batch_of_none_is_refused(tiny_clip):
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        CLIPReward(model=str(tiny_clip), batch_size=0)


def test_nothing_scores_nothing(tiny_clip):
    assert CLIPReward(model=str(tiny_clip)).score([], []).shape == (0,)


def test_a_batch_that_is_too_large_is_halved_and_noted(tiny_clip):
    expected = CLIPReward(model=str(tiny_clip)).score(PROMPTS, IMAGES)
    reward = CLIPReward(model=str(tiny_clip), batch_size=4)

    def short_of_memory(module, args, kwargs):
        if len(kwargs["pixel_values"]) > 2:
            raise torch.OutOfMemoryError("out of memory")

    reward.network.vision_model.register_forward_pre_hook(short_of_memory, with_kwargs=True)
    with noting_halvings() as notes:
        torch.testing.assert_close(reward.score(PROMPTS, IMAGES), expected)
    assert notes == ["CLIPReward: out of memory with 4 rows at once, went on with 2"]


def test_a_score_that_is_no_number_is_passed_on(tiny_clip):
    reward = CLIPReward(model=str(tiny_clip))
    torch.nn.init.constant_(reward.network.logit_scale, torch.nan)
    assert reward.score(PROMPTS, IMAGES).isnan().all()
