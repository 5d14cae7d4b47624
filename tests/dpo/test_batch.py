"""A batch holds what it says: prompts with all tokens of their images, responses, each image once."""

import pytest
import torch
from dpo.drawn_pairs import FOUR, draw

from synthalign.dpo.batch import collate


def test_every_pair_is_its_prompt_and_its_responses(chat, four):
    batch = collate(four, chat)
    assert batch.ids == [pair.id for pair in FOUR] and len(batch) == 4
    for row, pair in enumerate(FOUR):
        image = "<image>" * 4  # 28 px in patches of 14
        prompt = chat.tokenizer.decode(batch.prompts[row]["input_ids"])
        assert prompt == f"<s>USER: {image}\n {pair.question} ASSISTANT:"
        for side in ("chosen", "rejected"):
            assert chat.tokenizer.decode(getattr(batch, side)[row]) == f" {getattr(pair, side)}</s>"


def test_padding_is_left_out(chat, four):
    batch = collate(four, chat)
    assert len({len(prompt["input_ids"]) for prompt in batch.prompts}) > 1
    for prompt in batch.prompts:
        assert set(prompt) == {"input_ids"}
        assert (prompt["input_ids"] != chat.tokenizer.pad_token_id).all()


def test_each_image_is_there_once_and_every_pair_knows_its_own(chat, four):
    pairs = [four[0], four[1], four[0]._replace(id="again", question="What is this?"), four[2]]
    batch = collate(pairs, chat)
    assert set(batch.images) == {"pixel_values"}
    assert batch.images["pixel_values"].shape == (3, 3, 28, 28)
    assert batch.image_ids == [four[0].image_id, four[1].image_id, four[2].image_id]
    assert batch.image_of == [0, 1, 0, 2]
    alone = [collate([pair], chat).images["pixel_values"][0] for pair in pairs]
    for pair, place in enumerate(batch.image_of):
        assert torch.equal(batch.images["pixel_values"][place], alone[pair])


def test_images_move_and_tokens_stay(chat, four):
    batch = collate(four, chat).to("meta")
    assert batch.images["pixel_values"].is_meta
    assert not any(tensor.is_meta for tensor in [*batch.chosen, *(prompt["input_ids"] for prompt in batch.prompts)])


def test_a_long_prompt_keeps_every_token_of_its_image(chat, four):
    long = four[0]._replace(question="Is there a dog in the image? " * 200, image=draw("red circle on white"))
    batch = collate([long, four[1]], chat)
    image = chat.tokenizer.convert_tokens_to_ids("<image>")
    assert len(batch.prompts[0]["input_ids"]) > chat.max_length
    assert [int((prompt["input_ids"] == image).sum()) for prompt in batch.prompts] == [4, 4]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_response_without_a_token_is_an_error_with_its_id(side, chat, four):
    pairs = [four[0], four[1]._replace(**{side: []}), four[2]]
    with pytest.raises(ValueError, match=f"pair 'home-2': its {side} response has no token to be scored"):
        collate(pairs, chat)
