"""A batch holds what it says: prompts, then responses, then padding; each image once."""

import pytest
import torch
from dpo.drawn_pairs import FOUR

from synthalign.dpo.batch import collate


def test_every_row_is_its_prompt_and_its_response(chat, four):
    batch = collate(four, chat)
    assert batch.ids == [pair.id for pair in FOUR]
    for side in ("chosen", "rejected"):
        rows = getattr(batch, side)
        for row, pair in enumerate(FOUR):
            ids, mask = rows.inputs["input_ids"][row], rows.inputs["attention_mask"][row].bool()
            said = f" {getattr(pair, side)}</s>"
            assert chat.tokenizer.decode(ids[rows.response_mask[row]]) == said
            whole = chat.tokenizer.decode(ids[mask])
            image = "<image>" * 4  # 28 px in patches of 14
            assert whole == f"<s>USER: {image}\n {pair.question} ASSISTANT:{said}"


def test_padding_is_on_the_right_and_never_scored(chat, four):
    for rows in collate(four, chat)[2:]:
        present = rows.inputs["attention_mask"].bool()
        assert not present.all()
        assert torch.equal(present, present.long().cummin(1).values.bool())
        assert (rows.inputs["input_ids"][~present] == chat.tokenizer.pad_token_id).all()
        assert not (rows.response_mask & ~present).any()


def test_each_image_is_there_once(chat, four):
    images = collate(four, chat).images
    assert set(images) == {"pixel_values"}
    assert images["pixel_values"].shape == (4, 3, 28, 28)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_response_without_a_token_is_an_error_with_its_id(side, chat, four):
    pairs = [four[0], four[1]._replace(**{side: []}), four[2]]
    with pytest.raises(ValueError, match=f"pair 'home-2': its {side} response has no token to be scored"):
        collate(pairs, chat)
