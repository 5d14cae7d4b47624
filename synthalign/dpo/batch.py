"""A batch of preference pairs, not yet laid out: tokens as they are, every image once.

B pairs, G distinct images, P tokens of a prompt, C and R tokens of its responses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from synthalign.vlm import Chat
from synthalign.vlm.prompts import per_token


class PairTokens(NamedTuple):
    """One pair, its responses already tokens, their end of turn included; its prompt still text and image."""

    id: str
    image: Image
    image_id: str
    question: str
    chosen: Sequence[int]
    rejected: Sequence[int]


@dataclass  # not frozen: Lightning's precision plugins fill a copy of it
class PreferenceBatch:
    """B pairs about G images. Tokens stay on the CPU, where a layout puts them in order; images move.

    Args:
        ids: Of the pairs.
        prompts: Of each pair, what its model takes token by token, each (P,): ``input_ids`` with every placeholder of
            the image, and token types where the model has them.
        chosen: Tokens (C,) of each pair's chosen response.
        rejected: Tokens (R,) of each pair's rejected response.
        images: What the model takes for the G images.
        image_ids: Of the images.
        image_of: Place of each pair's image among the G.
    """

    ids: list[str]
    prompts: list[dict[str, Tensor]]
    chosen: list[Tensor]
    rejected: list[Tensor]
    images: dict[str, Tensor]
    image_ids: list[str]
    image_of: list[int]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PreferenceBatch":
        """Move the images; Lightning calls this."""
        images = {key: value.to(device, non_blocking=non_blocking) for key, value in self.images.items()}
        return replace(self, images=images)


def collate(pairs: Sequence[PairTokens], chat: Chat) -> PreferenceBatch:
    """Encode B pairs.

    Nothing is cut: a prompt keeps all tokens of its image, and a response all of its own.

    Raises:
        ValueError: A response has no token to be scored, which would train on nothing in silence.
    """
    for pair in pairs:
        for side in ("chosen", "rejected"):
            if not len(getattr(pair, side)):
                raise ValueError(f"pair {pair.id!r}: its {side} response has no token to be scored")
    image_ids = list(dict.fromkeys(pair.image_id for pair in pairs))
    place = {image_id: number for number, image_id in enumerate(image_ids)}
    first = {pair.image_id: pair for pair in reversed(pairs)}
    once = [first[image_id] for image_id in image_ids]
    with chat.each_image_once():
        encoded = chat.inputs([first[pair.image_id].image for pair in pairs], [pair.question for pair in pairs])
        of_images = encoded if once == list(pairs) else chat.inputs([p.image for p in once], [p.question for p in once])
    of_tokens = per_token(encoded)
    present = of_tokens.pop("attention_mask").bool()
    return PreferenceBatch(
        ids=[pair.id for pair in pairs],
        prompts=[{key: value[row, present[row]] for key, value in of_tokens.items()} for row in range(len(pairs))],
        chosen=[torch.as_tensor(pair.chosen, dtype=torch.long) for pair in pairs],
        rejected=[torch.as_tensor(pair.rejected, dtype=torch.long) for pair in pairs],
        images={key: value for key, value in of_images.items() if key not in of_tokens | {"attention_mask": present}},
        image_ids=image_ids,
        image_of=[place[pair.image_id] for pair in pairs],
    )
