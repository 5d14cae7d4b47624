"""Log-probs the plain way: whole conversations through the model's own forward, all logits, log_softmax."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor


def plain_logps(
    network: Any, processor: Any, images: Sequence[Image], questions: Sequence[str], responses: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Return the sums (n,) over the responses' tokens, end of turn included, and the tokens' numbers (n,).

    The chat template itself marks the responses.
    """
    talks = [
        [
            {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]},
            {"role": "assistant", "content": response},
        ]
        for image, question, response in zip(images, questions, responses, strict=True)
    ]
    encoded = processor.apply_chat_template(
        talks,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": "right"},
    )
    mask = torch.as_tensor(encoded.pop("assistant_masks")).bool()[:, 1:]
    encoded["pixel_values"] = encoded["pixel_values"].to(network.dtype)
    logps = network(**encoded).logits[:, :-1].log_softmax(-1)
    of_tokens = logps.gather(-1, encoded["input_ids"][:, 1:, None]).squeeze(-1)
    return (of_tokens * mask).sum(1), mask.sum(1)
