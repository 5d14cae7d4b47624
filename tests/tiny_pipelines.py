"""Tiny text-to-image pipelines of further families, put together with the parts of those in tiny.py."""

from pathlib import Path
from typing import Any

import torch
from tiny import DRAWING_SIZE

LETTERS = "▁abcdefghijklmnopqrstuvwxyz0123456789.,?!'-"


def build_sdxl(folder: Path, sd: Path, sd3: Path) -> Path:
    """Write a Stable Diffusion XL pipeline for images of 32 px."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    one, three = _parts(sd), _parts(sd3)
    width = one["text_encoder"].config.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=DRAWING_SIZE // 2,  # the autoencoder halves each side
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2 * width,  # both text encoders side by side
            attention_head_dim=2,
            norm_num_groups=2,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + width,  # sizes and crops, and the pooled text
        )
    StableDiffusionXLPipeline(
        **{name: one[name] for name in ("vae", "text_encoder", "tokenizer")},
        **{name: three[name] for name in ("text_encoder_2", "tokenizer_2")},
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def build_flux(folder: Path, sd: Path, sd3: Path) -> Path:
    """Write a FLUX pipeline for images of 32 px that takes guidance, as FLUX.1-dev does."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    one, three = _parts(sd), _parts(sd3)
    width = one["text_encoder"].config.hidden_size
    entries = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in LETTERS)]
    letters = T5Tokenizer(vocab=entries, extra_ids=0, model_max_length=512)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reader = T5EncoderModel(
            T5Config(vocab_size=len(letters), d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2)
        )
        transformer = FluxTransformer2DModel(
            in_channels=16,  # 2 x 2 latents of 4 channels
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=width,
            pooled_projection_dim=width,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        )
    FluxPipeline(
        **{name: one[name] for name in ("text_encoder", "tokenizer")},
        vae=three["vae"],
        text_encoder_2=reader,
        tokenizer_2=letters,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


def build_flagging(folder: Path, sd: Path) -> Path:
    """Write a Stable Diffusion 1 pipeline whose safety checker flags every image."""
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**shape, "image_size": 28, "patch_size": 14}
    with torch.random.fork_rng(devices=[]):
        checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=shape, vision_config=vision, projection_dim=32))
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2.0)  # thresholds below any cosine
    size = {"height": 28, "width": 28}
    parts = _parts(sd) | {
        "safety_checker": checker,
        "feature_extractor": CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size),
    }
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def _parts(folder: Path) -> dict[str, Any]:
    """The parts of a saved pipeline, by name."""
    from diffusers import AutoPipelineForText2Image, DiffusionPipeline

    three = (folder / "transformer").is_dir()
    absent: dict[str, Any] = dict.fromkeys(("text_encoder_3", "tokenizer_3")) if three else {}
    pipeline: DiffusionPipeline = AutoPipelineForText2Image.from_pretrained(folder, **absent)
    return dict(pipeline.components)
