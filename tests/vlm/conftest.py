"""Tiny models to ask, and their chats."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from synthalign.vlm import Chat, load_vlm


@pytest.fixture(scope="session")
def chat(tiny_llava: Path) -> Chat:
    return Chat(model=str(tiny_llava))


@pytest.fixture(scope="session")
def network(tiny_llava: Path) -> Any:
    return load_vlm(str(tiny_llava))


@pytest.fixture(scope="session")
def tiny_llava_next(tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-NeXT: it cuts an image into as many tiles as its shape asks for, so prompts differ in length."""
    from transformers import (
        AutoProcessor,
        LlavaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    folder = tmp_path_factory.mktemp("llava_next")
    small, tiles = LlavaConfig.from_pretrained(tiny_llava), [[28, 56], [56, 28], [56, 56]]
    tokenizer = AutoProcessor.from_pretrained(tiny_llava).tokenizer
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=tiles
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    config = LlavaNextConfig(
        vision_config=small.vision_config.to_dict(),
        text_config=small.text_config.to_dict(),
        image_token_id=small.image_token_id,
        image_grid_pinpoints=tiles,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_wide_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA whose matrices 4-bit kernels take."""
    return tiny.build_llava(tmp_path_factory.mktemp("wide_llava"), hidden_size=64)
