"""The batches that a plan is made for: of the pairs that exist, or of lengths that are assumed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from synthalign.dpo.batch import PairTokens, PreferenceBatch, collate
from synthalign.vlm import Chat

FILLER = 5
"""A token that stands for any: which it is changes no shape."""


class Lengths(NamedTuple):
    """Tokens of a pair: question with its template, image not counted; chosen and rejected response, ends included."""

    question: int
    chosen: int
    rejected: int


def spoken(chat: Chat, lengths: Sequence[Lengths], image_size: tuple[int, int]) -> PreferenceBatch:
    """Make a batch of pairs of these lengths, each about a blank image of its own, by the policy's processor.

    Args:
        chat: The policy's.
        lengths: Of the pairs; a question is never shorter than what the template needs.
        image_size: Width and height, px.

    Raises:
        ValueError: The chat template or the processor refuses them.
    """
    blank = Image.new("RGB", image_size)
    least = len(chat.tokenizer(chat.prompt(""), add_special_tokens=False).input_ids)
    word = chat.tokenizer(" a", add_special_tokens=False).input_ids
    pairs = [
        PairTokens(
            id=str(number),
            image=blank,
            image_id=str(number),
            question=" a" * max(0, (one.question - least) // len(word)),
            chosen=[FILLER] * one.chosen,
            rejected=[FILLER] * one.rejected,
        )
        for number, one in enumerate(lengths)
    ]
    try:
        return collate(pairs, chat)
    except ValueError as error:
        raise ValueError(f"the policy's processor refuses a prompt with an image of {image_size} ({error})") from error


def made_up(config: Any, lengths: Sequence[Lengths]) -> PreferenceBatch:  # noqa: ANN401 - any configuration
    """Make such a batch without a processor, for LLaVA-1.5's kind: every image one square of patches.

    Raises:
        ValueError: The model counts an image's tokens in another way, which its processor alone knows.
    """
    if config.model_type != "llava":
        raise ValueError(
            f"how many tokens an image takes, the processor of a {config.model_type} says, and it cannot be loaded: "
            "give a policy folder with its processor's files"
        )
    vision = config.vision_config
    image = [config.image_token_id] * (vision.image_size // vision.patch_size) ** 2
    prompts = [torch.tensor([*image, *[FILLER] * one.question]) for one in lengths]
    side = vision.image_size
    return PreferenceBatch(
        ids=[str(number) for number in range(len(lengths))],
        prompts=[{"input_ids": prompt} for prompt in prompts],
        chosen=[torch.full((one.chosen,), FILLER) for one in lengths],
        rejected=[torch.full((one.rejected,), FILLER) for one in lengths],
        images={"pixel_values": torch.zeros(len(lengths), 3, side, side)},
        image_ids=[str(number) for number in range(len(lengths))],
        image_of=list(range(len(lengths))),
    )


def tokens_of(batch: PreferenceBatch) -> int:
    """Count the tokens of prompts and both responses."""
    sides = (*batch.chosen, *batch.rejected)
    return sum(len(prompt["input_ids"]) for prompt in batch.prompts) + sum(len(side) for side in sides)
