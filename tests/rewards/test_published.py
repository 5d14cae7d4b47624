"""The real weights score as their authors published. Each test runs where a folder of them is named, else is skipped.

SYNTHALIGN_IMAGE_REWARD         THUDM/ImageReward from the hub, with google-bert/bert-base-uncased's files in bert/
SYNTHALIGN_IMAGE_REWARD_IMAGES  assets/images of github.com/THUDM/ImageReward: 1.webp to 4.webp
SYNTHALIGN_ARMORM               RLHFlow/ArmoRM-Llama3-8B-v0.1
SYNTHALIGN_PICKSCORE            yuvalkirstain/PickScore_v1, with the processor's files in clip/
SYNTHALIGN_HPS                  xswu/HPSv2, with the same in clip/, and config.json

The processor is that of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
"""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from synthalign.rewards.armorm import ArmoRMReward, rate, weigh
from synthalign.rewards.clip import CLIPReward
from synthalign.rewards.hps import HPSReward
from synthalign.rewards.image_reward import ImageRewardV1

COLORS = ("red", "green", "blue")


def folder(variable: str) -> Path:
    """The folder an environment variable names; without one, the test is skipped."""
    if not (named := os.environ.get(variable)):
        pytest.skip(f"real weights: set {variable} to their folder (see the top of this file)")
    assert Path(named).is_dir(), f"{variable}={named} is no folder"
    return Path(named)


def test_image_reward_scores_the_four_images_of_its_readme():
    model, images = folder("SYNTHALIGN_IMAGE_REWARD"), folder("SYNTHALIGN_IMAGE_REWARD_IMAGES")
    prompt = "a painting of an ocean with clouds and birds, day time, low depth field effect"
    reward = ImageRewardV1(model=str(model), tokenizer=str(model / "bert"))
    scores = reward.score([prompt] * 4, [Image.open(images / f"{n}.webp") for n in (1, 2, 3, 4)])
    expected = [0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492]
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=0, atol=0.01)


def test_armorm_rates_and_weighs_the_example_of_its_card():
    reward = ArmoRMReward(model=str(folder("SYNTHALIGN_ARMORM")))
    question = 'What are some synonyms for the word "beautiful"?'
    answer = "Nicely, Beautifully, Handsome, Stunning, Wonderful, Gorgeous, Pretty, Stunning, Elegant"
    response_state, question_state = reward.states([reward.render("", question, answer)])
    ratings, weights = rate(response_state, reward.heads)[0], weigh(question_state, reward.heads)[0]
    # HelpSteer's five, on its scale from 0 to 4. The card computes in bfloat16, whose steps are 0.016 here.
    expected = torch.tensor([2.78125, 2.859375, 3.484375, 1.3847656, 1.296875])
    torch.testing.assert_close(ratings[:5].cpu() * 5 - 0.5, expected, rtol=0, atol=0.06)
    top = weights.abs().argsort(descending=True)[:3]
    assert top.tolist() == [14, 4, 6]  # code-complexity, helpsteer-verbosity, ultrafeedback-instruction_following
    torch.testing.assert_close(weights[top].cpu(), torch.tensor([0.19922, -0.10864, 0.07861]), rtol=0.02, atol=0.002)
    score = reward.score([""], [Image.new("RGB", (4, 4))], [question], [answer])
    torch.testing.assert_close(score[0], (ratings * weights).sum().cpu(), rtol=1e-3, atol=1e-4)


def test_pickscore_is_its_cards_formula_and_knows_colors():
    """Its authors published no score of an image one can have; what a score must do is checked instead."""
    from transformers import AutoProcessor, CLIPModel

    model = folder("SYNTHALIGN_PICKSCORE")
    prompts = [f"a plain {color} image" for color in COLORS for _ in COLORS]
    images = [Image.new("RGB", (300, 200), color) for color in COLORS]
    scores = CLIPReward(model=str(model), processor=str(model / "clip")).score(prompts, images * 3).reshape(3, 3)
    assert scores.argmax(0).tolist() == scores.argmax(1).tolist() == [0, 1, 2]
    processor, network = AutoProcessor.from_pretrained(model / "clip"), CLIPModel.from_pretrained(model).eval()
    with torch.no_grad():
        inputs = processor(text=prompts[::3], images=images, padding=True, return_tensors="pt")
        expected = network(**inputs).logits_per_text
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("file", ["HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt"])
def test_hps_knows_colors(file):
    """Its authors published no score of an image one can have; what a score must do is checked instead."""
    model = folder("SYNTHALIGN_HPS")
    prompts = [f"a plain {color} image" for color in COLORS for _ in COLORS]
    images = [Image.new("RGB", (300, 200), color) for color in COLORS]
    scores = HPSReward(model=str(model), file=file, clip=str(model / "clip")).score(prompts, images * 3).reshape(3, 3)
    assert scores.argmax(0).tolist() == scores.argmax(1).tolist() == [0, 1, 2]
    assert 0 < scores.min() and scores.max() < 0.5
