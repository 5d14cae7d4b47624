"""Generation as transformers does it, one cache of its own for every row: what any model can do."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_k": None, "top_p": None}
"""Settings that leave every choice to the logits processors, whatever the model's own generation config says."""


class Said(NamedTuple):
    """The tokens of n replies, each up to and with the end that the model gave it."""

    tokens: list[list[int]]
    truncated: list[bool]  # the length limit ended it


def generate(
    model: Any,  # noqa: ANN401 - any Hugging Face model that generates, PEFT's wrapper included
    inputs: dict[str, Tensor],
    processors: Sequence[LogitsProcessor | None],
    *,
    max_new_tokens: int,
    pad_token_id: int,
    synced: bool = False,
) -> Said:
    """Continue n prompts, padded on the left, greedily but for what the processors rule out.

    Where ``synced``, rows that have ended wait for those of other ranks.
    """
    with gathering(model) if synced else nullcontext():
        out = model.generate(
            **inputs,
            **GREEDY,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_token_id,
            logits_processor=LogitsProcessorList([one for one in processors if one is not None]),
            synced_gpus=synced,
        )
    new = out[:, inputs["input_ids"].shape[1] :].tolist()
    return said(new, model.generation_config.eos_token_id)


@contextmanager
def gathering(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Let a sharded model gather its own weights for ``generate``: PEFT's wrapper hands that past its forward."""
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    if not isinstance(model, FSDPModule):
        yield
        return
    assert isinstance(model, torch.nn.Module)
    register_fsdp_forward_method(model, "generate")
    try:
        yield
    finally:
        del model.__dict__["generate"]


def said(rows: Sequence[list[int]], stops: int | list[int] | None) -> Said:
    """Cut every row behind its first token that ends a reply."""
    ends = set(stops) if isinstance(stops, list) else {stops}
    lengths = [next((n + 1 for n, token in enumerate(row) if token in ends), None) for row in rows]
    return Said(
        [row[:length] for row, length in zip(rows, lengths, strict=True)], [length is None for length in lengths]
    )


def to_model(model: Any, encoded: dict[str, Tensor]) -> dict[str, Tensor]:  # noqa: ANN401
    """Put what a processor gave onto the model's device, and numbers into its dtype."""
    return {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for key, value in encoded.items()
    }
