"""ArmoRM is its formula: ratings of the response, weighed by a gate that reads the question."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rewards.small_models import build_armorm

from synthalign.rewards.armorm import ArmoRMReward
from synthalign.types import ResponseReward

IMAGE = Image.new("RGB", (4, 4))
QUESTIONS = ["Is there a dog?", "What colour is the cup?", "Is there a dog?", "Why? " * 9]
RESPONSES = ["Yes, there is a dog.", "Red.", "No.", "Because the image shows a table and four chairs."]
PROMPTS = ["a dog", "a red cup", "no dog", "a table"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_armorm(tmp_path_factory.mktemp("armorm"))


def answer_ids(folder: Path) -> list[int]:
    """The end of a user's turn and the header of the answer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)("<|eot|><|start|>assistant<|end|>\n\n").input_ids


def part(folder: Path, **settings) -> ArmoRMReward:
    return ArmoRMReward(**{"model": str(folder), "answer_ids": answer_ids(folder), "dtype": "float32", **settings})


def scores(reward: ResponseReward, rows: list[int] | None = None) -> torch.Tensor:
    rows = list(range(4)) if rows is None else rows
    prompts, questions, responses = ([texts[row] for row in rows] for texts in (PROMPTS, QUESTIONS, RESPONSES))
    return reward.score(prompts, [IMAGE] * len(rows), questions, responses)


def by_hand(folder: Path, users: list[str], responses: list[str] = RESPONSES) -> torch.Tensor:
    """The formula of the model card in NumPy, one conversation at a time."""
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer, LlamaModel

    tokenizer, llama = AutoTokenizer.from_pretrained(folder), LlamaModel.from_pretrained(folder).eval()
    weights = load_file(folder / "model.safetensors")
    totals = []
    for user, response in zip(users, responses, strict=True):
        question = tokenizer(f"<s><|start|>user<|end|>\n\n{user}").input_ids
        header = tokenizer("<|eot|><|start|>assistant<|end|>\n\n").input_ids
        answer = tokenizer(f"{response}<|eot|>").input_ids
        with torch.no_grad():
            states = llama(torch.tensor([question + header + answer])).last_hidden_state[0].numpy()
        gate = states[len(question)]  # the first token of the header
        for n in range(4):
            gate = weights[f"gating.layers.{n}.weight"] @ gate + weights[f"gating.layers.{n}.bias"]
            gate = np.maximum(gate, 0) if n < 3 else np.exp(gate / 10)
        gate = gate / gate.sum() * weights["gating.logit_scale"][0]
        rewards = weights["regression_layer.weight"] @ states[-1]
        totals.append((gate * (rewards @ weights["reward_transform_matrix"])).sum())
    return torch.tensor(np.array(totals))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_score_is_the_formula_written_out_whatever_the_padding(batch_size, folder):
    reward = part(folder, batch_size=batch_size)
    expected = by_hand(folder, QUESTIONS)
    got = scores(reward)
    assert (got.shape, got.dtype) == ((4,), torch.float32)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert len({round(score, 2) for score in expected.tolist()}) == 4


def test_the_gate_looks_at_the_last_question_where_there_are_several(folder):
    """A question that holds the header itself, as a conversation of several turns does."""
    asked = "Why?<|eot|><|start|>assistant<|end|>\n\nSo.<|eot|><|start|>user<|end|>\n\nIs there a dog?"
    got = part(folder).score(["p"], [IMAGE], [asked], ["No."])
    torch.testing.assert_close(got, by_hand(folder, [asked], ["No."]), rtol=1e-4, atol=1e-5)


def test_the_drawing_prompt_is_context_where_the_format_asks_for_it(folder):
    told = scores(part(folder, question_format="{prompt}\n{question}"))
    users = [f"{prompt}\n{question}" for prompt, question in zip(PROMPTS, QUESTIONS, strict=True)]
    torch.testing.assert_close(told, by_hand(folder, users), rtol=1e-4, atol=1e-5)


def test_order_does_not_matter(folder):
    reward, order = part(folder, batch_size=2), [3, 1, 0, 2]
    torch.testing.assert_close(scores(reward, order), scores(reward)[order])


def test_equal_conversations_are_scored_once(folder):
    reward = part(folder)
    seen = []
    reward.network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    got = scores(reward, [0, 1, 0, 0, 2, 1])
    assert sum(seen) == 3
    assert got[0] == got[2] == got[3] and got[1] == got[5]


def test_weights_in_several_files_are_the_same_weights(folder, tmp_path):
    torch.testing.assert_close(scores(part(build_armorm(tmp_path, shards=3))), scores(part(folder)))


def test_half_precision_scores_nearly_the_same(folder):
    half = scores(part(folder, dtype="bfloat16"))
    torch.testing.assert_close(half, scores(part(folder)), rtol=0.1, atol=0.3)


def test_a_conversation_that_is_too_long_loses_its_end(folder):
    got = part(folder).score(["p"] * 2, [IMAGE] * 2, ["Why?"] * 2, ["word " * 300 + "a", "word " * 300 + "b"])
    assert got[0] == got[1]
    with pytest.raises(ValueError, match="are not in the conversation"):
        part(folder).score(["p"], [IMAGE], ["Why? " * 300], ["a"])


def test_a_conversation_without_the_header_is_one_line(folder):
    reward = part(folder, answer_ids=[128009, 128006])
    with pytest.raises(ValueError, match=r"answer_ids \[128009, 128006\] are not in the conversation '<s>") as caught:
        scores(reward)
    assert "\n" not in str(caught.value)


def test_nothing_scores_nothing_and_loads_nothing(folder):
    reward = part(folder)
    assert reward.score([], [], [], []).shape == (0,)
    assert not {"network", "heads"} & set(vars(reward))


def test_a_score_that_is_no_number_is_passed_on(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["gating.logit_scale"] += torch.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    assert scores(part(broken)).isnan().all()


def test_the_models_own_code_is_neither_needed_nor_run(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert "auto_map" in json.loads((copy / "config.json").read_text())
    witness = tmp_path / "ran"
    (copy / "modeling_custom.py").write_text(f"open({str(witness)!r}, 'w')\n")
    scores(part(copy))
    assert not witness.exists()


def test_a_model_without_the_heads_is_one_line(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    headless = shutil.copytree(folder, tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    del weights["gating.layers.2.bias"]
    save_file(weights, headless / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"weight 'gating\.layers\.2\.bias' of model '.*' cannot be read") as caught:
        scores(part(headless))
    assert "\n" not in str(caught.value)


def test_settings_that_cannot_be_meant_are_refused(folder):
    for settings, line in (
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"answer_ids": []}, "answer_ids must not be empty"),
        ({"question_format": "{prompt}"}, "leaves out {question}"),
        ({"question_format": "{question} {response}"}, "knows only {prompt}, {question}"),
        ({"model": "./gone"}, "no model folder at './gone'"),
    ):
        with pytest.raises(ValueError) as caught:
            part(folder, **settings)
        assert line in str(caught.value)


def test_released_weights_are_loaded_again(folder):
    reward = part(folder)
    expected = scores(reward)
    reward.release()
    assert not {"network", "heads"} & set(vars(reward))
    assert torch.equal(scores(reward), expected)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_llama_says_nearly_the_same_and_the_heads_stay_whole(quantization, tmp_path):
    wide = build_armorm(tmp_path, width=128, spread=0.05)
    whole, packed = part(wide), part(wide, quantization=quantization)
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        one, other = (reward.network(input_ids=ids).last_hidden_state for reward in (whole, packed))
    assert 0.95 < torch.cosine_similarity(one, other, dim=-1).mean() < 0.99999
    assert torch.equal(packed.heads.gate[0][0], whole.heads.gate[0][0])
    assert scores(packed).isfinite().all()
