"""Pairs about drawings, and a policy whose adapter is not zero, so that it differs from its reference."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo.adapters import spread
from dpo.drawn_pairs import FOUR, draw
from transformers import AutoProcessor

from synthalign.dpo.batch import PairTokens
from synthalign.dpo.policy import LoRA, load_policy
from synthalign.vlm import Chat
from synthalign.weights import DType


@pytest.fixture(scope="session")
def chat(tiny_llava: Path) -> Chat:
    return Chat(model=str(tiny_llava))


@pytest.fixture(scope="session")
def processor(tiny_llava: Path) -> Any:
    return AutoProcessor.from_pretrained(tiny_llava)


@pytest.fixture(scope="session")
def make_policy(tiny_llava: Path) -> Callable[..., Any]:
    def make(dtype: DType = "float32", **lora: Any) -> Any:
        torch.manual_seed(0)
        settings = {"r": 4, "alpha": 8, **lora}
        return spread(load_policy(str(tiny_llava), dtype=dtype, lora=LoRA(**settings)))

    return make


@pytest.fixture(scope="session")
def four(chat: Chat) -> list[PairTokens]:
    def encode(question: str, answer: str) -> list[int]:
        return chat.response_ids(question, answer)

    return [
        PairTokens(
            p.id, draw(p.drawing), p.drawing, p.question, encode(p.question, p.chosen), encode(p.question, p.rejected)
        )
        for p in FOUR
    ]
