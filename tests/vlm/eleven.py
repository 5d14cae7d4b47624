"""Eleven families of vision-language models, tiny and random."""

from collections.abc import Callable
from typing import Any

import tiny
import torch
import transformers as hf
from vlm.hub_folders import Family

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "initializer_range": tiny.SPREAD,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": tiny.SPREAD,
}
SIDE, PATCH = tiny.IMAGE_SIZE, tiny.PATCH_SIZE  # px
SQUARE = {"height": SIDE, "width": SIDE}
TILES = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def _of(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _id(tokenizer: Any, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def _llava(tokenizer: Any) -> Any:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, image_size=SIDE, patch_size=PATCH),
        text_config=hf.LlamaConfig(**TEXT, **_of(tokenizer)),
        image_token_id=_id(tokenizer, "<image>"),
        image_seq_length=4,
    )
    return hf.LlavaForConditionalGeneration(config)


def _llava_next(tokenizer: Any) -> Any:
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, image_size=SIDE, patch_size=PATCH),
        text_config=hf.LlamaConfig(**TEXT, **_of(tokenizer)),
        image_token_id=_id(tokenizer, "<image>"),
        image_grid_pinpoints=TILES,
    )
    return hf.LlavaNextForConditionalGeneration(config)


def _llava_onevision(tokenizer: Any) -> Any:
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, image_size=SIDE, patch_size=PATCH, vision_use_head=False),
        text_config=hf.Qwen2Config(**TEXT, **_of(tokenizer)),
        image_token_index=_id(tokenizer, "<image>"),
        video_token_index=_id(tokenizer, "<video>"),
        image_grid_pinpoints=TILES,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


def _qwen(model: Any, config: Any, text: dict[str, Any], tower: dict[str, Any]) -> Callable[[Any], Any]:
    def make(tokenizer: Any) -> Any:
        whole = config(
            text_config={**TEXT, **_of(tokenizer), "rope_parameters": MROPE, **text},
            vision_config={
                "depth": 2,
                "num_heads": 2,
                "patch_size": PATCH,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "initializer_range": tiny.SPREAD,
                **tower,
            },
            image_token_id=_id(tokenizer, "<|image_pad|>"),
            video_token_id=_id(tokenizer, "<|video_pad|>"),
            vision_start_token_id=_id(tokenizer, "<|vision_start|>"),
            vision_end_token_id=_id(tokenizer, "<|vision_end|>"),
        )
        return model(whole)

    return make


def _idefics(model: Any, config: Any, vision: Any) -> Callable[[Any], Any]:
    def make(tokenizer: Any) -> Any:
        whole = config(
            vision_config=vision(**TOWER, image_size=SIDE, patch_size=PATCH),
            text_config=hf.LlamaConfig(**TEXT, **_of(tokenizer)),
            scale_factor=2,
            image_token_id=_id(tokenizer, "<image>"),
            pad_token_id=tokenizer.pad_token_id,
        )
        return model(whole)

    return make


def _internvl(tokenizer: Any) -> Any:
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**TOWER, image_size=2 * SIDE, patch_size=PATCH),
        text_config=hf.Qwen2Config(**TEXT, **_of(tokenizer)),
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return hf.InternVLForConditionalGeneration(config)


def _paligemma(tokenizer: Any) -> Any:
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(
            **TOWER, image_size=SIDE, patch_size=PATCH, projection_dim=32, vision_use_head=False
        ),
        text_config=hf.GemmaConfig(**TEXT, **_of(tokenizer), head_dim=16),
        image_token_id=_id(tokenizer, "<image>"),
        projection_dim=32,
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def _gemma3(tokenizer: Any) -> Any:
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**TOWER, image_size=2 * SIDE, patch_size=PATCH, vision_use_head=False),
        text_config=hf.Gemma3TextConfig(
            **TEXT,
            **_of(tokenizer),
            head_dim=16,
            sliding_window=512,
            layer_types=["sliding_attention", "full_attention"],
        ),
        mm_tokens_per_image=4,
        boi_token_index=_id(tokenizer, "<start_of_image>"),
        eoi_token_index=_id(tokenizer, "<end_of_image>"),
        image_token_index=_id(tokenizer, "<image_soft_token>"),
    )
    model = hf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # it begins as zero
    return model


CLIP = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}
LLAVA = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
QWEN_PIXELS = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": PATCH,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56},
}
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
IDEFICS_TOKENS = (
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
IDEFICS_PIXELS = {
    "size": {"longest_edge": 2 * SIDE},
    "max_image_size": {"longest_edge": SIDE},
    "do_image_splitting": True,
}

ELEVEN = [
    Family(
        "llava",
        _llava,
        {"image_processor_type": "CLIPImageProcessor", **CLIP},
        {"processor_class": "LlavaProcessor", **LLAVA},
    ),
    Family(
        "llava_next",
        _llava_next,
        {"image_processor_type": "LlavaNextImageProcessor", **CLIP, "image_grid_pinpoints": TILES},
        {"processor_class": "LlavaNextProcessor", **LLAVA},
    ),
    Family(
        "llava_onevision",
        _llava_onevision,
        {"image_processor_type": "LlavaOnevisionImageProcessor", "size": SQUARE, "image_grid_pinpoints": TILES},
        {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 4,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
        tokens=("<image>", "<video>"),
        video="LlavaOnevisionVideoProcessor",
    ),
    Family(
        "qwen2_vl",
        _qwen(
            hf.Qwen2VLForConditionalGeneration,
            hf.Qwen2VLConfig,
            {},
            {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        ),
        QWEN_PIXELS,
        {"processor_class": "Qwen2VLProcessor"},
        image=QWEN_IMAGE,
        filled="<|image_pad|>",
        tokens=QWEN_TOKENS,
        video="Qwen2VLVideoProcessor",
    ),
    Family(
        "qwen2_5_vl",
        _qwen(
            hf.Qwen2_5_VLForConditionalGeneration,
            hf.Qwen2_5_VLConfig,
            {},
            {
                "hidden_size": 32,
                "out_hidden_size": 32,
                "intermediate_size": 64,
                "window_size": 56,
                "fullatt_block_indexes": [1],
            },
        ),
        QWEN_PIXELS,
        {"processor_class": "Qwen2_5_VLProcessor"},
        image=QWEN_IMAGE,
        filled="<|image_pad|>",
        tokens=QWEN_TOKENS,
        video="Qwen2VLVideoProcessor",
    ),
    Family(
        "qwen3_vl",
        _qwen(
            hf.Qwen3VLForConditionalGeneration,
            hf.Qwen3VLConfig,
            {"head_dim": 16},
            {
                "hidden_size": 32,
                "out_hidden_size": 32,
                "intermediate_size": 64,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
        ),
        QWEN_PIXELS,
        {"processor_class": "Qwen3VLProcessor"},
        image=QWEN_IMAGE,
        filled="<|image_pad|>",
        tokens=QWEN_TOKENS,
        video="Qwen3VLVideoProcessor",
    ),
    Family(
        "idefics3",
        _idefics(hf.Idefics3ForConditionalGeneration, hf.Idefics3Config, hf.Idefics3VisionConfig),
        {"image_processor_type": "Idefics3ImageProcessor", **IDEFICS_PIXELS},
        {"processor_class": "Idefics3Processor", "image_seq_len": 1},
        tokens=IDEFICS_TOKENS,
        language="text_model",
    ),
    Family(
        "smolvlm",
        _idefics(hf.SmolVLMForConditionalGeneration, hf.SmolVLMConfig, hf.SmolVLMVisionConfig),
        {"image_processor_type": "SmolVLMImageProcessor", **IDEFICS_PIXELS},
        {"processor_class": "SmolVLMProcessor", "image_seq_len": 1},
        tokens=IDEFICS_TOKENS,
        video="SmolVLMVideoProcessor",
        language="text_model",
        spells="transformers.models.smolvlm.processing_smolvlm.num2words",
    ),
    Family(
        "internvl",
        _internvl,
        {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 2 * SIDE, "width": 2 * SIDE},
            "crop_to_patches": True,
            "max_patches": 3,
        },
        {"processor_class": "InternVLProcessor", "image_seq_length": 4},
        image="<IMG_CONTEXT>\n",
        filled="<IMG_CONTEXT>",
        tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        video="InternVLVideoProcessor",
    ),
    Family(
        "paligemma",
        _paligemma,
        {"image_processor_type": "SiglipImageProcessor", "size": SQUARE, "image_seq_length": 4},
        {"processor_class": "PaliGemmaProcessor"},
        template=False,
    ),
    Family(
        "gemma3",
        _gemma3,
        {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 2 * SIDE, "width": 2 * SIDE}},
        {"processor_class": "Gemma3Processor", "image_seq_length": 4},
        image="<start_of_image>",
        filled="<image_soft_token>",
        tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    ),
]
