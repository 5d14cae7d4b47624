"""ImageReward scores as its authors' own code does, on the same weights, prompts and images."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from rewards.drawn import draw_images
from rewards.small_models import build_image_reward, golden

from synthalign.rewards.image_reward import ImageRewardV1
from synthalign.types import ImageReward

MADE = golden("image_reward")
PROMPTS, IMAGES, EXPECTED = MADE["prompts"], draw_images(MADE["sizes"]), torch.tensor(MADE["scores"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_image_reward(tmp_path_factory.mktemp("image-reward"))


def part(folder: Path, **settings) -> ImageRewardV1:
    return ImageRewardV1(model=str(folder), tokenizer=str(folder / "bert"), **settings)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_scores_are_the_authors_own_whatever_the_batch(batch_size, folder):
    reward: ImageReward = part(folder, batch_size=batch_size)
    scores = reward.score(PROMPTS, IMAGES)
    assert (scores.shape, scores.dtype) == ((5,), torch.float32)
    torch.testing.assert_close(scores, EXPECTED, rtol=1e-5, atol=2e-5)
    assert len({round(score) for score in EXPECTED.tolist()}) == 5


def test_the_image_counts_and_the_prompt_counts(folder):
    reward = part(folder)
    assert ((reward.score(PROMPTS, IMAGES[::-1])[:2] - EXPECTED[:2]).abs() > 0.1).all()
    assert ((reward.score(PROMPTS[::-1], IMAGES)[:2] - EXPECTED[:2]).abs() > 0.1).all()


def test_what_follows_35_tokens_of_a_prompt_is_not_read(folder):
    long = "a red cup " * 11
    scores = part(folder).score([long + "on the table", long + "table on the"], IMAGES[:1] * 2)
    assert scores[0] == scores[1]  # [CLS], 33 words, [SEP]


def test_half_precision_scores_nearly_the_same(folder):
    torch.testing.assert_close(part(folder, dtype="bfloat16").score(PROMPTS, IMAGES), EXPECTED, rtol=0.1, atol=0.5)


def test_nothing_scores_nothing_and_loads_nothing(folder):
    reward = part(folder)
    assert reward.score([], []).shape == (0,)
    assert "network" not in vars(reward)


def test_a_score_that_is_no_number_is_passed_on(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    part(folder).score(PROMPTS[:1], IMAGES[:1])
    (converted,) = folder.glob(".ImageReward-*.safetensors")
    weights = load_file(converted)
    weights["mlp.layers.7.bias"] += torch.nan
    save_file(weights, tmp_path / "broken.safetensors")
    shutil.copy(folder / "med_config.json", tmp_path)
    reward = ImageRewardV1(model=str(tmp_path), file="broken.safetensors", tokenizer=str(folder / "bert"))
    assert reward.score(PROMPTS, IMAGES).isnan().all()


def test_other_peoples_files_are_one_line(folder, tmp_path):
    def line(**settings) -> str:
        with pytest.raises(ValueError) as caught:
            ImageRewardV1(tokenizer=str(folder / "bert"), **settings).score(PROMPTS, IMAGES)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    model = str(tmp_path)
    assert line(model=model) == f"model {model!r} has no file 'ImageReward.pt'"
    torch.save({"weight": torch.ones(2)}, tmp_path / "ImageReward.pt")
    assert "is no ImageReward: it has no weights under blip.visual_encoder" in line(model=model)
    weights = torch.load(folder / "ImageReward.pt", weights_only=True)
    torch.save(weights, tmp_path / "ImageReward.pt")
    assert line(model=model) == f"model {model!r} has no file 'med_config.json'"
    (tmp_path / "med_config.json").write_text("{")
    assert "med_config.json is no configuration of a BERT" in line(model=model)
    (tmp_path / "med_config.json").write_text(json.dumps({**MADE["config"], "hidden_size": 64}))
    assert "holds no weights of this BlipTextModel" in line(model=model)
    shutil.copy(folder / "med_config.json", tmp_path)
    for name, said in (
        ("blip.text_encoder.embeddings.LayerNorm.bias", "lacks weights of BlipTextModel: embeddings.LayerNorm.bias"),
        ("blip.visual_encoder.norm.bias", "lacks weights of BlipVisionModel: post_layernorm.bias"),
        ("mlp.layers.2.bias", "lacks weights of ImageReward: mlp.layers.2.bias"),
        ("mlp.layers.7.weight", "lacks weights of ImageReward: mlp.layers.7.weight"),
    ):
        torch.save({key: value for key, value in weights.items() if key != name}, tmp_path / "ImageReward.pt")
        assert line(model=model).endswith(said)


def test_settings_that_cannot_be_meant_are_refused(folder):
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        part(folder, batch_size=0)
    with pytest.raises(ValueError, match=r"^no model folder at './gone'"):
        ImageRewardV1(model="./gone")
    with pytest.raises(ValueError, match=r"^no model folder at './gone'"):
        ImageRewardV1(tokenizer="./gone")


def test_released_weights_are_loaded_again(folder):
    reward = part(folder)
    expected = reward.score(PROMPTS[:1], IMAGES[:1])
    reward.release()
    assert "network" not in vars(reward)
    assert torch.equal(reward.score(PROMPTS[:1], IMAGES[:1]), expected)
