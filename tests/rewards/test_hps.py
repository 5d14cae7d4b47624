"""HPSv2 scores as its authors' own code does, on the same weights, prompts and images."""

from pathlib import Path

import pytest
import torch
from rewards.drawn import draw_images
from rewards.small_models import build_hps, golden

from synthalign.rewards.hps import HPSReward
from synthalign.types import ImageReward

MADE = golden("hps")
PROMPTS, IMAGES, EXPECTED = MADE["prompts"], draw_images(MADE["sizes"]), torch.tensor(MADE["scores"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_hps(tmp_path_factory.mktemp("hps"))


def part(folder: Path, **settings) -> HPSReward:
    return HPSReward(model=str(folder), clip=str(folder / "clip"), **settings)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_scores_are_the_authors_own_whatever_the_batch(batch_size, folder):
    reward: ImageReward = part(folder, batch_size=batch_size)
    scores = reward.score(PROMPTS, IMAGES)
    assert (scores.shape, scores.dtype) == ((5,), torch.float32)
    torch.testing.assert_close(scores, EXPECTED, rtol=1e-5, atol=1e-5)


def test_without_antialias_scores_are_those_of_the_authors_older_versions(folder):
    expected = torch.tensor(MADE["scores_without_antialias"])
    assert ((expected - EXPECTED).abs() > 0.01).tolist() == [True, True, False, True, True]  # the third is not resized
    torch.testing.assert_close(part(folder, antialias=False).score(PROMPTS, IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_prompts_become_the_authors_tokens(folder):
    got = part(folder).tokenizer(PROMPTS, truncation=True, max_length=77).input_ids
    assert got == MADE["tokens"]


def test_half_precision_scores_nearly_the_same(folder):
    torch.testing.assert_close(part(folder, dtype="bfloat16").score(PROMPTS, IMAGES), EXPECTED, rtol=0, atol=0.03)


def test_nothing_scores_nothing_and_loads_nothing(folder):
    reward = part(folder)
    assert reward.score([], []).shape == (0,)
    assert "network" not in vars(reward)


def test_a_score_that_is_no_number_is_passed_on(folder, tmp_path):
    weights = torch.load(folder / "HPS_v2.1_compressed.pt", weights_only=True)
    weights["state_dict"]["visual.ln_post.bias"] += torch.nan
    torch.save(weights, tmp_path / "broken.pt")
    reward = HPSReward(model=str(tmp_path), file="broken.pt", clip=str(folder / "clip"))
    assert reward.score(PROMPTS, IMAGES).isnan().all()


def test_other_peoples_files_are_one_line(folder, tmp_path):
    def line() -> str:
        with pytest.raises(ValueError) as caught:
            HPSReward(model=str(tmp_path), clip=str(folder / "clip")).score(PROMPTS, IMAGES)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    source = f"HPS_v2.1_compressed.pt of model {str(tmp_path)!r}"
    assert line() == f"model {str(tmp_path)!r} has no file 'HPS_v2.1_compressed.pt'"
    torch.save({"weight": torch.ones(2)}, tmp_path / "HPS_v2.1_compressed.pt")
    assert line().startswith(f"{source} lacks weights of CLIPModel: logit_scale and ")
    weights = torch.load(folder / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]
    del weights["transformer.resblocks.1.attn.in_proj_bias"]
    torch.save(weights, tmp_path / "HPS_v2.1_compressed.pt")
    assert line() == (
        f"{source} lacks weights of CLIPModel: text_model.encoder.layers.1.self_attn.k_proj.bias and 2 more"
    )
    weights["transformer.resblocks.1.attn.in_proj_bias"] = torch.ones(12)
    torch.save(weights, tmp_path / "HPS_v2.1_compressed.pt")
    assert line().startswith(f"{source} holds no weights of this CLIPModel: ")


def test_settings_that_cannot_be_meant_are_refused(folder):
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        part(folder, batch_size=0)
    with pytest.raises(ValueError, match=r"^no model folder at './gone'"):
        HPSReward(model="./gone")
    with pytest.raises(ValueError, match=r"^no model folder at './gone'"):
        HPSReward(clip="./gone")


def test_released_weights_are_loaded_again(folder):
    reward = part(folder)
    expected = reward.score(PROMPTS[:1], IMAGES[:1])
    reward.release()
    assert "network" not in vars(reward)
    assert torch.equal(reward.score(PROMPTS[:1], IMAGES[:1]), expected)
