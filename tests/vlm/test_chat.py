"""A question about an image becomes tokens in one way, and no image is processed more often than it must be."""

import json
import shutil

import pytest
import torch
from PIL import Image
from vlm.asking import IMAGES, QUESTIONS, count_images

from synthalign.vlm import Chat

RESPONSES = ["Yes.", " A red cup, and a green chair.\n", "猫 “quoted” 👍", "No: 1 < 2", "x"]


def test_the_prompt_is_the_models_own_template(chat):
    assert chat.prompt("Is there a dog?") == "USER: <image>\n Is there a dog? ASSISTANT:"


def test_prompt_and_response_are_the_tokens_of_the_whole_conversation(chat):
    for question in QUESTIONS:
        for response in RESPONSES:
            whole = f"USER: <image>\n {question} ASSISTANT: {response.strip()}</s>"
            expected = chat.tokenizer(whole).input_ids
            prompt = chat.tokenizer(chat.prompt(question)).input_ids
            assert prompt + chat.response_ids(question, response) == expected
            assert expected[-1] == chat.tokenizer.eos_token_id and expected[0] == chat.tokenizer.bos_token_id


def test_a_template_that_leaves_the_turn_open_gets_its_end(tiny_llava, chat):
    """LLaVA-1.5's own is such a template; without an end a model never learns to stop."""
    template = chat.processor.chat_template.replace("text + eos_token", "text + ' '")
    open_ended = Chat(model=str(tiny_llava), chat_template=template)
    for response in RESPONSES:
        assert open_ended.response_ids("Why?", response) == chat.response_ids("Why?", response)


def test_a_template_that_begins_replies_otherwise_still_gives_the_response(tiny_llava, chat):
    template = chat.processor.chat_template.replace("'ASSISTANT:'", "'ASSISTANT: <think></think>'")
    thinking = Chat(model=str(tiny_llava), chat_template=template)
    assert chat.tokenizer.decode(thinking.response_ids("Why?", " So it is. ")) == "So it is.</s>"


def test_an_empty_response_is_refused(chat):
    for response in ("", " \n"):
        with pytest.raises(ValueError, match=r"^an empty response to 'Why\?' has no tokens$"):
            chat.response_ids("Why?", response)


def test_a_template_that_renders_the_beginning_gets_no_second_one(tiny_llava, chat):
    doubled = Chat(model=str(tiny_llava), chat_template="{{ bos_token }}" + chat.processor.chat_template)
    ids, expected = (one.inputs(IMAGES[:1], ["Why?"])["input_ids"] for one in (doubled, chat))
    assert torch.equal(ids, expected)
    assert doubled.response_ids("Why?", "So.") == chat.response_ids("Why?", "So.")


def test_the_system_prompt_comes_first(tiny_llava):
    brief = Chat(model=str(tiny_llava), system_prompt="Be brief.")
    assert brief.prompt("Why?") == " Be brief. USER: <image>\n Why? ASSISTANT:"
    assert brief.tokenizer.decode(brief.response_ids("Why?", "So.")) == " So.</s>"


def test_mistakes_about_templates_are_one_line(tiny_llava, tmp_path):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}<image>"
    with pytest.raises(ValueError, match="refuses turns of system, user: no system role") as caught:
        Chat(model=str(tiny_llava), chat_template=refusing, system_prompt="Be brief.").prompt("Why?")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="refuses turns of user"):
        Chat(model=str(tiny_llava), chat_template="{% if %}").prompt("Why?")
    folder = shutil.copytree(tiny_llava, tmp_path / "mute")
    for name in ("processor_config.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        config.pop("chat_template", None)
        (folder / name).write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="has no chat template: give one as chat_template"):
        _ = Chat(model=str(folder)).processor


def test_inputs_are_padded_on_the_left_and_each_row_is_what_it_is_alone(chat):
    batch = chat.inputs(IMAGES, QUESTIONS)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    for row, (image, question) in enumerate(zip(IMAGES, QUESTIONS, strict=True)):
        alone = chat.inputs([image], [question])
        length = alone["input_ids"].shape[1]
        assert batch["input_ids"][row, -length:].tolist() == alone["input_ids"][0].tolist()
        assert batch["attention_mask"][row].tolist() == [0] * (batch["input_ids"].shape[1] - length) + [1] * length
        assert torch.equal(batch["pixel_values"][row], alone["pixel_values"][0])
        assert (alone["input_ids"] == chat.tokenizer.convert_tokens_to_ids("<image>")).sum() == 4


def test_a_tokenizer_without_padding_pads_with_its_end(tiny_llava, tmp_path, chat):
    folder = shutil.copytree(tiny_llava, tmp_path / "unpadded")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["pad_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    unpadded = Chat(model=str(folder))
    assert unpadded.tokenizer.pad_token == "</s>"
    got, expected = (one.inputs(IMAGES, QUESTIONS) for one in (unpadded, chat))
    assert torch.equal(got["attention_mask"], expected["attention_mask"])


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (200, 10)])
def test_the_length_of_a_prompt_is_counted_without_its_image(size, chat):
    for question in QUESTIONS:
        real = chat.inputs([Image.new("RGB", size, "red")], [question])["input_ids"].shape[1]
        assert chat.prompt_length(question, size) == real


def test_yes_and_no_are_the_first_tokens_of_such_replies(chat):
    yes, no = chat.yes_no_ids
    assert {chat.tokenizer.decode([token]) for token in yes} == {" Yes", " yes"}
    assert {chat.tokenizer.decode([token]) for token in no} == {" No", " no"}
    assert chat.max_length == 512


def test_images_of_which_a_batch_would_be_padded_are_processed_as_a_batch(tiny_llava):
    """Their common shape is the batch's affair."""
    chat = Chat(model=str(tiny_llava))
    settings = {"do_center_crop": False, "do_resize": False}
    for name, value in settings.items():
        setattr(chat.processor.image_processor, name, value)
    small, large = Image.new("RGB", (28, 28), "red"), Image.new("RGB", (28, 42), "blue")
    counts = count_images(chat)
    with chat.each_image_once():
        same = chat.inputs([small, small], QUESTIONS[:2])
        assert same["pixel_values"].shape == (2, 3, 28, 28) and counts == [1]
        with pytest.raises(ValueError, match="pixel_values"):  # this processor cannot pad
            chat.inputs([small, large], QUESTIONS[:2])
        assert counts == [1, 1, 2]


def test_rendered_prompts_are_kept_within_bounds(tiny_llava, monkeypatch):
    monkeypatch.setattr("synthalign.vlm.chat.REMEMBERED_PROMPTS", 3)
    chat = Chat(model=str(tiny_llava))
    for _ in range(2):
        for n in range(10):
            assert chat.prompt(f"Why {n}?") == f"USER: <image>\n Why {n}? ASSISTANT:"
            assert len(chat._prompts) <= 3


SHAPES = [(40, 30), (30, 90), (120, 20), (40, 30)]


def test_prompts_differ_in_length_with_the_shape_of_the_image(tiny_llava_next):
    chat = Chat(model=str(tiny_llava_next))
    lengths = [chat.prompt_length("Why?", size) for size in SHAPES]
    for size, length in zip(SHAPES, lengths, strict=True):
        assert chat.inputs([Image.new("RGB", size, "red")], ["Why?"])["input_ids"].shape[1] == length
    assert len(set(lengths)) == 3


def test_images_in_tiles_are_joined_where_they_are_alike_and_padded_as_a_batch_where_not(tiny_llava_next):
    chat = Chat(model=str(tiny_llava_next))
    wide, high, square = (Image.new("RGB", size, "red") for size in ((90, 30), (30, 90), (60, 60)))
    for images in ([wide, high, wide, wide], [wide, square, wide, high]):
        expected = chat.inputs(images, QUESTIONS)
        with chat.each_image_once():
            for _ in range(2):
                got = chat.inputs(images, QUESTIONS)
                assert got.keys() == expected.keys()
                assert all(torch.equal(got[key], expected[key]) for key in expected)
