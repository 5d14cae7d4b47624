"""Nine families of vision-language models, tiny and random, in float64; and three pairs about two images for each."""

import random
from typing import Any, NamedTuple

import torch
import transformers as hf
from dpo.adapters import spread

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.policy import LoRA

IMAGE, START, END, VIDEO = 290, 292, 293, 291
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
QWEN_TOWER: dict[str, Any] = {"num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


class Family(NamedTuple):
    """A model, what it takes for two images, and the tokens that each of them fills."""

    model: Any
    images: dict[str, torch.Tensor]
    tokens: tuple[int, int]


def llava() -> Family:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, image_size=28, patch_size=14),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    return Family(hf.LlavaForConditionalGeneration(config), {"pixel_values": torch.randn(2, 3, 28, 28)}, (4, 4))


def llava_next() -> Family:
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, image_size=28, patch_size=14),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        image_grid_pinpoints=[[28, 56], [56, 28]],
    )
    images = {"pixel_values": torch.randn(2, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56], [56, 28]])}
    # 4 of the whole, and 2 x 4 of the two halves with an end to each line: 2 lines of 4, or 4 lines of 2
    return Family(hf.LlavaNextForConditionalGeneration(config), images, (4 + 2 * 5, 4 + 4 * 3))


def _qwen(model: Any, config: Any, text: dict[str, Any] | None = None, **tower: Any) -> Family:
    language = {**TEXT, **(text or {}), "rope_parameters": MROPE}
    whole = config(text_config=language, vision_config={**QWEN_TOWER, **tower}, **QWEN_TOKENS)
    images = {
        "pixel_values": torch.randn(24 + 16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 6], [1, 4, 4]]),
    }
    return Family(model(whole), images, (6, 4))


def qwen2_vl() -> Family:
    return _qwen(
        hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLConfig, depth=2, embed_dim=32, hidden_size=64, mlp_ratio=2
    )


def qwen2_5_vl() -> Family:
    return _qwen(
        hf.Qwen2_5_VLForConditionalGeneration,
        hf.Qwen2_5_VLConfig,
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        out_hidden_size=64,
        window_size=16,
        fullatt_block_indexes=[1],
    )


def qwen3_vl() -> Family:
    return _qwen(
        hf.Qwen3VLForConditionalGeneration,
        hf.Qwen3VLConfig,
        text={"head_dim": 16},
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        out_hidden_size=64,
        deepstack_visual_indexes=[0, 1],
        num_position_embeddings=16,
    )


def _idefics(model: Any, config: Any, vision: Any) -> Family:
    tower = vision(**TOWER, image_size=32, patch_size=8)
    whole = config(vision_config=tower, text_config=hf.LlamaConfig(**TEXT), scale_factor=2, image_token_id=IMAGE)
    return Family(model(whole), {"pixel_values": torch.randn(2, 1, 3, 32, 32)}, (4, 4))


def idefics3() -> Family:
    return _idefics(hf.Idefics3ForConditionalGeneration, hf.Idefics3Config, hf.Idefics3VisionConfig)


def smolvlm() -> Family:
    return _idefics(hf.SmolVLMForConditionalGeneration, hf.SmolVLMConfig, hf.SmolVLMVisionConfig)


def paligemma() -> Family:
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, image_size=28, patch_size=14, projection_dim=64),
        text_config=hf.GemmaConfig(**TEXT, head_dim=16),
        image_token_id=IMAGE,
        projection_dim=64,
    )
    return Family(hf.PaliGemmaForConditionalGeneration(config), {"pixel_values": torch.randn(2, 3, 28, 28)}, (4, 4))


def gemma3() -> Family:
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**TOWER, image_size=56, patch_size=14),
        text_config=hf.Gemma3TextConfig(**TEXT, head_dim=16, sliding_window=8, layer_types=layers),
        image_token_id=IMAGE,
        mm_tokens_per_image=4,
    )
    model = hf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # it begins as zero
    return Family(model, {"pixel_values": torch.randn(2, 3, 56, 56)}, (4, 4))


NINE = (llava, llava_next, qwen2_vl, qwen2_5_vl, qwen3_vl, idefics3, smolvlm, paligemma, gemma3)


def policy_and_batch(family: Any, dtype: torch.dtype = torch.float64) -> tuple[Any, PreferenceBatch]:
    """Make a family's policy, its adapter not zero, and three pairs: two about one image, one about another."""
    torch.manual_seed(0)
    model, images, tokens = family()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # wider than initialised: a wrong position or mask must show
                parameter.mul_(3)
    policy = spread(LoRA(r=4, alpha=8)(model.to(dtype).eval().requires_grad_(False)))
    noise = random.Random(1)

    def words(count: int) -> list[int]:
        return [noise.randint(5, 280) for _ in range(count)]

    begins = [1, *words(2)]  # the same for all, so that pairs about one image share it
    qwen = "image_grid_thw" in images
    prompts, image_of = [], [0, 1, 0]
    for place, size in zip(image_of, (5, 3, 7), strict=True):
        image = [IMAGE] * tokens[place]
        ids = torch.tensor([*begins, *([START, *image, END] if qwen else image), *words(size)])
        prompts.append({"input_ids": ids} | _kinds(family.__name__, ids))
    chosen, rejected = ([torch.tensor([*words(n), 2]) for n in sizes] for sizes in ((11, 6, 0), (7, 9, 4)))
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in images.items()}
    return policy, PreferenceBatch(["a", "b", "c"], prompts, chosen, rejected, inputs, ["x", "y"], image_of)


def _kinds(family: str, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the token types that a family's processor gives."""
    image = (ids == IMAGE).long()
    if family.startswith("qwen"):
        return {"mm_token_type_ids": image}
    return {"paligemma": {"token_type_ids": image * 0}, "gemma3": {"token_type_ids": image}}.get(family, {})
