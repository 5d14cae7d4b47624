"""Questions about noise, and a model that answers them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from synthalign.types import Reply
from synthalign.vlm import VLM, Chat

QUESTIONS = [
    "Why?",
    "Is there a dog in the image? Please answer yes or no.",
    "How many chairs are there?",
    "Describe the image in detail.",
]
rng = np.random.default_rng(0)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [noise(40, 30) for _ in QUESTIONS]


def responder(folder: Path, **settings: Any) -> VLM:
    return VLM(model=str(folder), **({"max_new_tokens": 8} | settings))


def texts(replies: Sequence[Reply]) -> list[str]:
    return [one.text for one in replies]


def by_hand(network: Any, chat: Chat, image: Image.Image, question: str, steps: int) -> tuple[list[int], float]:
    """The greedy tokens of one row by plain forwards without a cache, and the yes margin at the first."""
    inputs = dict(chat.inputs([image], [question]))
    said: list[int] = []
    margin = 0.0
    for step in range(steps):
        with torch.no_grad():
            logits = network(**inputs).logits[0, -1]
        if step == 0:
            yes, no = (logits[ids].exp().sum().log() for ids in chat.yes_no_ids)
            margin = float(yes - no)
        said.append(int(logits.argmax()))
        if said[-1] == chat.tokenizer.eos_token_id:
            break
        token = torch.tensor([[said[-1]]])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
    return said, margin


def alike(some: Sequence[Reply], others: Sequence[Reply]) -> bool:
    """Whether replies are the same, their margins up to rounding, which a batch's neighbours may change."""
    return len(some) == len(others) and all(
        one[:2] == other[:2] and abs((one.yes_margin or 0) - (other.yes_margin or 0)) < 1e-4
        for one, other in zip(some, others, strict=True)
    )


def count_images(chat: Chat) -> list[int]:
    """How many images each call of the real image processor gets, from now on."""
    processor, counts = chat.processor.image_processor, []
    real = processor.preprocess

    def counted(images: Any, **settings: Any) -> Any:
        counts.append(len(images))
        return real(images, **settings)

    processor.preprocess = counted
    return counts
