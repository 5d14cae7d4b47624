"""Prompts about images, token by token; and where those about one image part.

P tokens of a prompt.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from synthalign.vlm.chat import Chat
from synthalign.vlm.families import blocks, image_token_of, positions


class Prompt(NamedTuple):
    """One question about one image."""

    tokens: dict[str, Tensor]  # (P,) each, on the CPU: ``input_ids``, and token types where the model has them
    positions: Tensor  # (1, P + 1) or (3, P + 1): of the prompt and of the first token behind it
    stem: int  # the first tokens of it that stand in the shared cache

    @property
    def ids(self) -> Tensor:
        """Tokens of the prompt, (P,)."""
        return self.tokens["input_ids"]

    @property
    def stem_key(self) -> tuple[int, ...]:
        """The tokens of the stem, to tell stems about one image apart."""
        return tuple(self.ids[: self.stem].tolist())


class Asked(NamedTuple):
    """All that is asked about one image."""

    image: Image.Image
    pixels: dict[str, Tensor]  # what the model takes for the image
    places: int  # tokens that the image fills in a prompt
    prompts: dict[str, Prompt]  # by question
    processed: Any = None  # what the image processor gave; None where the model has none


def encode_prompts(
    network: Any,  # noqa: ANN401
    chat: Chat,
    image: Image.Image,
    questions: Sequence[str],
    processed: Any = None,  # noqa: ANN401
) -> Asked:
    """Encode the distinct questions about an image, which is processed once, or not at all where that is given."""
    tokens: dict[str, dict[str, Tensor]] = {}
    pixels: dict[str, Tensor] = {}
    with chat.each_image_once() as known:
        if processed is not None:
            known[id(image)] = image, processed
        for question in questions:
            encoded = chat.inputs([image], [question])
            of_tokens = per_token(encoded)
            pixels = {key: value for key, value in encoded.items() if key not in of_tokens}
            tokens[question] = {key: value[0] for key, value in of_tokens.items() if key != "attention_mask"}
        _, processed = known.get(id(image), (image, None))
    grids = pixels.get("image_grid_thw")
    stem = _stem(network, list(tokens.values()))
    prompts = {}
    for question, one in tokens.items():
        ids = one["input_ids"]
        places = positions(network, torch.cat([ids, ids.new_zeros(1)]), grids)
        prompts[question] = Prompt(one, places, stem or len(ids))
    return Asked(image, pixels, int((ids == image_token_of(network)).sum()), prompts, processed)


def per_token(encoded: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what a processor gives token by token."""
    encoded.pop("labels", None)  # PaliGemma's gives some, unasked
    return {key: value for key, value in encoded.items() if value.shape == encoded["input_ids"].shape}


def _stem(network: Any, prompts: list[dict[str, Tensor]]) -> int:  # noqa: ANN401
    """Count the tokens that prompts about one image begin with alike; 0 if they part before the image ends.

    No block that sees both ways is cut, and each prompt keeps a token of its own. A prompt that is the only one is cut
    behind its image, so that stems of images that fill as many tokens are equally long.
    """
    first, size = prompts[0], min(len(prompt["input_ids"]) for prompt in prompts) - 1
    image = (first["input_ids"] == image_token_of(network)).nonzero()[:, 0]
    if not len(image):
        return 0
    block, length = blocks(network, first), int(image[-1]) + 1
    if len(prompts) > 1:
        alike = torch.ones(size, dtype=torch.bool)
        for prompt in prompts[1:]:
            for key, value in prompt.items():
                alike &= value[:size] == first[key][:size]
        length = int(alike.long().cumprod(0).sum())
    length = min(length, size)
    while length and block[length] >= 0 and block[length - 1] == block[length]:
        length -= 1
    return length if length > int(image[-1]) else 0
