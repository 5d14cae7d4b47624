"""A text reward scores each conversation as the model's own forward does."""

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from synthalign.rewards.sequence_classification import SequenceClassificationReward

IMAGE = Image.new("RGB", (4, 4))
QUESTIONS = ["Is there a dog?", "What colour is the cup?", "Is there a dog?", "Why?"]
RESPONSES = ["Yes, there is a dog.", "Red.", "No.", "Because the image shows a table and four chairs."]
PROMPTS = ["a dog", "a red cup", "no dog", "a table"]


def scores(reward: SequenceClassificationReward, rows: list[int] | None = None) -> torch.Tensor:
    rows = list(range(4)) if rows is None else rows
    prompts, questions, responses = ([texts[row] for row in rows] for texts in (PROMPTS, QUESTIONS, RESPONSES))
    return reward.score(prompts, [IMAGE] * len(rows), questions, responses)


def plain(folder: Path, users: list[str], responses: list[str] = RESPONSES) -> torch.Tensor:
    """Each conversation's score by the model's own forward, one row at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for user, response in zip(users, responses, strict=True):
        ids = tokenizer(f"<s><|user|>{user}</s><|assistant|>{response}</s>").input_ids
        with torch.no_grad():
            rows.append(model(input_ids=torch.tensor([ids])).logits[0, 0])
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_score_is_the_models_own_row_by_row(batch_size, tiny_reward):
    got = scores(SequenceClassificationReward(model=str(tiny_reward), batch_size=batch_size))
    assert (got.shape, got.dtype) == ((4,), torch.float32)
    expected = plain(tiny_reward, QUESTIONS)
    torch.testing.assert_close(got, expected)
    assert len({round(float(score), 3) for score in expected}) == 4


def test_a_tokenizer_that_puts_its_own_beginning_does_not_put_a_second(tiny_reward, tmp_path):
    from tokenizers import processors
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny_reward, tmp_path / "reward")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("a").input_ids[0] == tokenizer.bos_token_id
    torch.testing.assert_close(scores(SequenceClassificationReward(model=str(folder))), plain(tiny_reward, QUESTIONS))


def test_a_model_without_padding_is_scored_in_batches_as_it_is_row_by_row(tiny_reward, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = shutil.copytree(tiny_reward, tmp_path / "reward")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.pad_token_id = None
    model.save_pretrained(folder)
    reward = SequenceClassificationReward(model=str(folder))
    assert reward.tokenizer.pad_token is None and reward.network.config.pad_token_id is None
    torch.testing.assert_close(scores(reward), plain(folder, QUESTIONS))
    torch.testing.assert_close(scores(reward), plain(tiny_reward, QUESTIONS))


def test_order_does_not_matter(tiny_reward):
    reward = SequenceClassificationReward(model=str(tiny_reward), batch_size=2)
    order = [3, 1, 0, 2]
    torch.testing.assert_close(scores(reward, order), scores(reward)[order])


def test_the_drawing_prompt_is_context_where_the_format_asks_for_it(tiny_reward):
    told = SequenceClassificationReward(model=str(tiny_reward), question_format="{prompt}\n{question}")
    users = [f"{prompt}\n{question}" for prompt, question in zip(PROMPTS, QUESTIONS, strict=True)]
    torch.testing.assert_close(scores(told), plain(tiny_reward, users))
    untold = scores(SequenceClassificationReward(model=str(tiny_reward)))
    assert ((scores(told) - untold).abs() > 1e-3).all()


def test_braces_in_a_question_are_text(tiny_reward):
    reward = SequenceClassificationReward(model=str(tiny_reward), question_format="{{}} {question}")
    got = reward.score(["p"], [IMAGE], ["what is {x}?"], ["{y}"])
    torch.testing.assert_close(got, plain(tiny_reward, ["{} what is {x}?"], ["{y}"]))


@pytest.mark.parametrize(
    ("question_format", "line"),
    [
        ("{prompt}", "leaves out {question}"),
        ("", "leaves out {question}"),
        ("{question} {answer}", "knows only {prompt}, {question}"),
        ("{} {question}", "knows only {prompt}, {question}"),
        ("{question", "knows only {prompt}, {question}"),
        ("{question.text}", "knows only {prompt}, {question}"),
    ],
)
def test_a_format_that_cannot_be_filled_is_refused(question_format, line, tiny_reward):
    with pytest.raises(ValueError) as caught:
        SequenceClassificationReward(model=str(tiny_reward), question_format=question_format)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_equal_conversations_are_scored_once(tiny_reward):
    reward = SequenceClassificationReward(model=str(tiny_reward))
    seen = []
    reward.network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    rows = [0, 1, 0, 0, 2, 1]
    got = scores(reward, rows)
    assert sum(seen) == 3
    assert got[0] == got[2] == got[3] and got[1] == got[5]
    torch.testing.assert_close(got, scores(reward)[rows])


def test_a_conversation_that_is_too_long_loses_its_end(tiny_reward):
    reward = SequenceClassificationReward(model=str(tiny_reward), max_length=12)
    got = reward.score(["p"] * 2, [IMAGE] * 2, ["Why?"] * 2, ["word " * 50 + "a", "word " * 50 + "b"])
    assert got[0] == got[1]
    unlimited = SequenceClassificationReward(model=str(tiny_reward))
    endless = unlimited.score(["p"] * 2, [IMAGE] * 2, ["Why?"] * 2, ["word " * 5000 + "a", "word " * 5000 + "b"])
    assert endless[0] == endless[1]  # the model has 512 positions


def test_a_batch_of_none_is_refused(tiny_reward):
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        SequenceClassificationReward(model=str(tiny_reward), batch_size=0)


def test_nothing_scores_nothing(tiny_reward):
    reward = SequenceClassificationReward(model=str(tiny_reward))
    assert reward.score([], [], [], []).shape == (0,)
    assert "network" not in vars(reward)


def test_models_that_are_no_rewards_are_refused(tiny_reward, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    folder = shutil.copytree(tiny_reward, tmp_path / "two")
    LlamaForSequenceClassification(LlamaConfig.from_pretrained(folder, num_labels=2)).save_pretrained(folder)
    with pytest.raises(ValueError, match="has 2 labels; a reward has one"):
        scores(SequenceClassificationReward(model=str(folder)))
    folder = shutil.copytree(tiny_reward, tmp_path / "mute")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="has no chat template to put question and response in"):
        scores(SequenceClassificationReward(model=str(folder)))


def test_a_score_that_is_no_number_is_passed_on(tiny_reward):
    reward = SequenceClassificationReward(model=str(tiny_reward))
    torch.nn.init.constant_(reward.network.score.weight, torch.nan)
    assert scores(reward).isnan().all()


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_model_scores(quantization, tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tiny.build_reward(tmp_path)
    config = LlamaConfig.from_pretrained(folder, hidden_size=128, intermediate_size=128, initializer_range=0.05)
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    packed = SequenceClassificationReward(model=str(folder), quantization=quantization)
    names = {type(part).__name__ for part in packed.network.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization] in names
    assert type(packed.network.score).__name__ == "Linear"
    got, whole = scores(packed), scores(SequenceClassificationReward(model=str(folder)))
    torch.testing.assert_close(got, whole, atol=0.3 * float(whole.abs().max()), rtol=0)
