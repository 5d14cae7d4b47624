"""A batch of pairs as the model takes it. B pairs, S tokens of the longest row, padded on the right."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from synthalign.vlm import Chat


class Rows(NamedTuple):
    """One response per row after its prompt. ``inputs`` hold everything token by token, each (B, S)."""

    inputs: dict[str, Tensor]  # input_ids, attention_mask, and what else the model's processor gives per token
    response_mask: Tensor  # (B, S) bool: the tokens whose log-probs count


class PreferenceBatch(NamedTuple):
    """B pairs; row i of ``chosen`` and of ``rejected`` share the prompt and the image of pair i."""

    ids: list[str]
    images: dict[str, Tensor]  # what the model takes for the images of the B prompts, once
    chosen: Rows
    rejected: Rows


class PairTokens(NamedTuple):
    """One pair, its responses already tokens, their end of turn included; its prompt still text and image."""

    id: str
    image: Image
    question: str
    chosen: Sequence[int]
    rejected: Sequence[int]


def collate(pairs: Sequence[PairTokens], chat: Chat) -> PreferenceBatch:
    """Lay B pairs out as rows.

    Raises:
        ValueError: A response has no token to be scored, which would train on nothing in silence.
    """
    for pair in pairs:
        for side in ("chosen", "rejected"):
            if not len(getattr(pair, side)):
                raise ValueError(f"pair {pair.id!r}: its {side} response has no token to be scored")
    encoded = chat.inputs([pair.image for pair in pairs], [pair.question for pair in pairs])
    encoded.pop("labels", None)  # PaliGemma's processor gives some, unasked
    per_token = {key: value for key, value in encoded.items() if value.shape == encoded["input_ids"].shape}
    images = {key: value for key, value in encoded.items() if key not in per_token}
    pad = chat.tokenizer.pad_token_id
    return PreferenceBatch(
        [pair.id for pair in pairs],
        images,
        _rows(per_token, [pair.chosen for pair in pairs], pad),
        _rows(per_token, [pair.rejected for pair in pairs], pad),
    )


def _rows(prompts: dict[str, Tensor], responses: Sequence[Sequence[int]], pad: int) -> Rows:
    """Put each response behind its prompt."""
    present = prompts["attention_mask"].bool()
    lengths = present.sum(1).tolist()
    size = max(length + len(response) for length, response in zip(lengths, responses, strict=True))
    inputs = {key: value.new_full((len(responses), size), 0) for key, value in prompts.items()}
    inputs["input_ids"].fill_(pad)
    response_mask = torch.zeros(len(responses), size, dtype=torch.bool)
    for row, (length, response) in enumerate(zip(lengths, responses, strict=True)):
        end = length + len(response)
        for key, value in prompts.items():
            inputs[key][row, :length] = value[row, present[row]]
            inputs[key][row, length:end] = _of_response(key, value[present])
        inputs["input_ids"][row, length:end] = torch.as_tensor(response)
        response_mask[row, length:end] = True
    return Rows(inputs, response_mask)


def _of_response(key: str, of_prompts: Tensor) -> int:
    """What an input other than the ids is where a response stands."""
    if key == "attention_mask":
        return 1
    # Token types tell text, 0, from images; or, if the images are 0 as well, prompts, which may attend to themselves
    # in both directions, from responses, which then are 1.
    return 0 if of_prompts.any() else 1
