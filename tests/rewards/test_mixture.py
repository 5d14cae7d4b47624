"""A mixture is the weighted sum of its parts, and a part of weight 0 only looks on."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from synthalign.cli import main
from synthalign.rewards.clip import CLIPReward
from synthalign.rewards.mixture import ImageMixture, ResponseMixture, combine
from synthalign.rewards.sequence_classification import SequenceClassificationReward
from synthalign.rewards.vlm_judge import VLMJudge
from synthalign.store import recipe_of
from synthalign.types import ImageReward, ResponseReward
from synthalign.vlm import VLM

PROMPTS, IMAGES = ["a red cup", "two dogs"], [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
ANSWERS = (["Is there a dog?"] * 2, ["Yes.", "No, there is a cup."])


@pytest.fixture
def text_parts(tiny_reward: Path, tiny_llava: Path) -> dict[str, ResponseReward]:
    text = SequenceClassificationReward(model=str(tiny_reward))
    return {"text": text, "sight": VLMJudge(judge=VLM(model=str(tiny_llava)))}


def test_an_image_mixture_is_the_weighted_sum(tiny_clip):
    parts: dict[str, ImageReward] = {"a": CLIPReward(model=str(tiny_clip)), "b": CLIPReward(model=str(tiny_clip))}
    mixture: ImageReward = ImageMixture(parts=parts, weights={"b": -0.5, "a": 3})
    single = parts["a"].score(PROMPTS, IMAGES)
    got = mixture.score(PROMPTS, IMAGES)
    assert (got.shape, got.dtype) == ((2,), torch.float32)
    torch.testing.assert_close(got, 2.5 * single)
    torch.testing.assert_close(ImageMixture(parts=parts).score(PROMPTS, IMAGES), 2 * single)


def test_a_response_mixture_is_the_weighted_sum(text_parts):
    mixture: ResponseReward = ResponseMixture(parts=text_parts, weights={"text": 2.0, "sight": 0.1})
    text, sight = (part.score(PROMPTS, IMAGES, *ANSWERS) for part in text_parts.values())
    torch.testing.assert_close(mixture.score(PROMPTS, IMAGES, *ANSWERS), 2 * text + 0.1 * sight)


def test_a_witness_is_neither_counted_nor_computed(text_parts):
    mixture = ResponseMixture(parts=text_parts, weights={"text": 1.0, "sight": 0.0})
    text = text_parts["text"].score(PROMPTS, IMAGES, *ANSWERS)
    assert torch.equal(mixture.score(PROMPTS, IMAGES, *ANSWERS), text)
    assert "network" not in vars(text_parts["sight"].asked)


def test_nothing_scores_nothing(tiny_clip, text_parts):
    assert ImageMixture(parts={"a": CLIPReward(model=str(tiny_clip))}).score([], []).shape == (0,)
    assert ResponseMixture(parts=text_parts).score([], [], [], []).shape == (0,)


def test_released_parts_are_all_released(text_parts):
    mixture = ResponseMixture(parts=text_parts)
    expected = mixture.score(PROMPTS, IMAGES, *ANSWERS)
    mixture.release()
    assert "network" not in vars(text_parts["text"]) and "network" not in vars(text_parts["sight"].asked)
    assert torch.equal(mixture.score(PROMPTS, IMAGES, *ANSWERS), expected)


def test_weights_are_told_in_the_parts_order_and_defaults_written_out_are_no_other_recipe(text_parts):
    plain = ResponseMixture(parts=text_parts)
    told = ResponseMixture(parts=text_parts, weights={"sight": 1, "text": 1})
    assert told.weights is not None and list(told.weights.items()) == [("text", 1.0), ("sight", 1.0)]
    assert recipe_of(plain) == recipe_of(told)
    assert recipe_of(plain) != recipe_of(ResponseMixture(parts=text_parts, weights={"sight": 1, "text": 2}))


@pytest.mark.parametrize("kind", [ImageMixture, ResponseMixture])
@pytest.mark.parametrize(
    ("names", "weights", "line"),
    [
        ([], None, "parts of a mixture must not be empty"),
        ("ab", {"a": 1.0, "b": 1.0, "c": 1.0}, "weights name 'c', which is no part of the mixture: a, b"),
        ("ab", {"a": 1.0}, "weights leave out the part 'b'"),
        ("ab", {"a": 1.0, "b": math.inf}, "the weight of 'b' must be finite, got inf"),
        ("ab", {"a": 0.0, "b": 0.0}, "all weights of the mixture are 0"),
    ],
)
def test_weights_that_do_not_fit_the_parts_are_refused(kind, names, weights, line):
    with pytest.raises(ValueError) as caught:
        kind(parts=dict.fromkeys(names), weights=weights)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_scores_of_the_parts_are_combined_row_by_row():
    scores: dict[str, list[float | None]] = {
        "a": [1.0, 2.0, -3.0],
        "b": [10.0, 20.0, 30.0],
        "witness": [5.0, None, math.nan],
    }
    assert combine({"a": 2.0, "b": 0.5, "witness": 0.0}, scores) == [7.0, 14.0, 9.0]
    assert combine({"a": 1.0}, scores) == [1.0, 2.0, -3.0]
    assert combine({"a": 1.0, "b": 1.0}, {"a": [], "b": []}) == []


@pytest.mark.parametrize("unfit", [None, math.nan, math.inf, -math.inf])
def test_a_row_that_a_counted_part_cannot_score_has_no_sum(unfit):
    assert combine({"a": 1.0, "b": 1e-9}, {"a": [1.0, 1.0], "b": [2.0, unfit]}) == [1.0 + 2e-9, None]


def test_a_sum_that_overflows_is_none():
    assert combine({"a": 1e200}, {"a": [1e200, 1.0]}) == [None, 1e200]


def test_parts_of_other_lengths_are_a_fault_of_ours():
    with pytest.raises(ValueError, match="zip"):
        combine({"a": 1.0, "b": 1.0}, {"a": [1.0], "b": [1.0, 2.0]})


CONFIG = """\
model:
  class_path: DPOModule
  init_args: {{policy: {llava}, loss: {{class_path: synthalign.dpo.losses.DPO}}}}
data:
  class_path: SyntheticPreferenceDataModule
  init_args:
    synthesis:
      prompts: prompts.jsonl
      store: store
      generator: {{class_path: synthalign.world.generator.Renderer}}
      image_reward:
        class_path: synthalign.rewards.mixture.ImageMixture
        init_args:
          parts:
            clip: {{class_path: synthalign.rewards.clip.CLIPReward, init_args: {{model: {clip}}}}}
            other:
              class_path: synthalign.rewards.hps.HPSReward
              init_args: {{model: {clip}, clip: {clip}}}
          weights: {{clip: 1, other: 0.5}}
      responders: [{{class_path: synthalign.vlm.VLM, init_args: {{model: {llava}}}}}]
      num_samples: 2
      response_reward:
        class_path: synthalign.rewards.mixture.ResponseMixture
        init_args:
          parts:
            text:
              class_path: synthalign.rewards.sequence_classification.SequenceClassificationReward
              init_args: {{model: {reward}}}
            armorm:
              class_path: synthalign.rewards.armorm.ArmoRMReward
              init_args: {{model: {reward}}}
            sight:
              class_path: synthalign.rewards.vlm_judge.VLMJudge
              init_args: {{judge: {{model: {llava}, dtype: bfloat16}}}}
"""


def test_a_mixture_from_a_config_scores(tiny_llava, tiny_reward):
    """What the door's parser makes of a config, down to the parts of the parts."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=ResponseReward)
    text = CONFIG.format(llava=tiny_llava, clip="clip", reward=tiny_reward)
    wanted = yaml.safe_load(text)["data"]["init_args"]["synthesis"]["response_reward"]
    del wanted["init_args"]["parts"]["armorm"]
    made = parser.instantiate_classes(parser.parse_object({"reward": wanted})).reward
    assert isinstance(made, ResponseMixture) and isinstance(made.parts["sight"], VLMJudge)
    by_hand = ResponseMixture(
        parts={
            "text": SequenceClassificationReward(model=str(tiny_reward)),
            "sight": VLMJudge(judge=VLM(model=str(tiny_llava), dtype="bfloat16")),
        }
    )
    assert recipe_of(made) == recipe_of(by_hand)
    assert torch.equal(made.score(PROMPTS, IMAGES, *ANSWERS), by_hand.score(PROMPTS, IMAGES, *ANSWERS))


def test_a_wrong_name_in_a_config_is_one_line(tiny_llava, tiny_clip, tiny_reward, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = CONFIG.format(llava=tiny_llava, clip=tiny_clip, reward=tiny_reward)
    Path("config.yaml").write_text(text.replace("other: 0.5", "othr: 0.5"))
    with pytest.raises(SystemExit) as stopped:
        main(["synthesize", "--config", "config.yaml"])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert next(line for line in lines if line.startswith("synthalign: error:")).endswith(
        "weights name 'othr', which is no part of the mixture: clip, other"
    )


def test_mixtures_are_written_in_a_config(tiny_llava, tiny_clip, tiny_reward, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG.format(llava=tiny_llava, clip=tiny_clip, reward=tiny_reward))
    with pytest.raises(SystemExit) as stopped:
        main(["synthesize", "--config", "config.yaml", "--print_config"])
    said = capsys.readouterr()
    assert stopped.value.code == 0, said.err
    made = yaml.safe_load(said.out)["data"]["init_args"]["synthesis"]
    parts = made["response_reward"]["init_args"]["parts"]
    assert list(parts) == ["text", "armorm", "sight"]
    assert parts["text"]["init_args"]["batch_size"] == 16
    assert parts["sight"]["init_args"]["judge"]["dtype"] == "bfloat16"
    assert made["image_reward"]["init_args"]["weights"] == {"clip": 1.0, "other": 0.5}
