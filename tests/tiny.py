"""Tiny real models: folders as the Hugging Face hub holds them, made in a second, weights random from a seed.

Every builder writes one folder and returns it. Weights are drawn wider than a real initialisation draws them, so that
logits differ enough for a test to notice a wrong image, mask or position.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PATCH_SIZE = 14  # px
IMAGE_SIZE = 28  # px: four patches
DRAWING_SIZE = 32  # px, of the diffusion models
SPREAD = 0.2  # standard deviation of the weights of a language model

# What the byte-pair merges are learnt from; any other text still encodes, byte by byte.
SENTENCES = (
    "Describe the image in detail.",
    "The image shows a red cup and a green chair on the table.",
    "Is there a dog in the image? Please answer yes or no.",
    "Yes, there is a dog. No, there is no dog. Say yes or say no: Yes or No.",
    "What colour is the cup? How many chairs are there?",
)

# LLaVA-1.5's turns. An assistant's ends with the end of sequence, and is marked, so that its mask can be asked for.
LLAVA_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role != 'system' %}{{- message.role.upper() + ':' }}{% endif %}
    {%- if message.content is string %}
        {%- set text = ' ' + message.content %}
    {%- else %}
        {%- for part in message.content if part.type == 'image' %}{{- ' <image>\\n' }}{% endfor %}
        {%- set text = ' ' + message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join %}
    {%- endif %}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- text + eos_token }}{% endgeneration %}
    {%- else %}
        {{- text + ' ' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{% endif %}"""

# Turns whose contents are strings, as text-only templates take them.
REWARD_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}{{- '<|' + message.role + '|>' + message.content + eos_token }}{% endfor %}"""


def build_llava(folder: Path, seed: int = 0, *, hidden_size: int = 32) -> Path:
    """Write a LLaVA: CLIP tower, projector and Llama of two layers each. 4-bit kernels need ``hidden_size`` 64."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _byte_pair_tokenizer(special=["<image>"], begin=True)
    tokenizer.chat_template = LLAVA_TEMPLATE
    shape = {
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": SPREAD,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE),
        text_config=LlamaConfig(
            **shape,
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which the default strategy takes off again
        chat_template=LLAVA_TEMPLATE,
    )
    with _seeded(seed):
        model = LlavaForConditionalGeneration(config)
    return _save(folder, model, processor)


def build_clip(folder: Path, seed: int = 0) -> Path:
    """Write a CLIP with its processor, as PickScore has them: both in one folder."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPVisionConfig

    tokenizer = _clip_tokenizer()
    vision = CLIPVisionConfig(**_CLIP_SHAPE, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE)
    text = _clip_text_config(tokenizer)
    processor = CLIPProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
        tokenizer=tokenizer,
    )
    with _seeded(seed):
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=32))
    return _save(folder, model, processor)


def build_reward(folder: Path, seed: int = 0) -> Path:
    """Write a text reward model: a Llama with one label, whose chat template takes contents that are strings."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = _byte_pair_tokenizer(special=["<|user|>", "<|assistant|>"])
    tokenizer.chat_template = REWARD_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=SPREAD,
        max_position_embeddings=512,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with _seeded(seed):
        model = LlamaForSequenceClassification(config)
    return _save(folder, model, tokenizer)


def build_sd(folder: Path, seed: int = 0) -> Path:
    """Write a Stable Diffusion 1 pipeline for images of 32 px."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    tokenizer = _clip_tokenizer()
    with _seeded(seed):
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=(8, 16),
                down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
                up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
                norm_num_groups=2,
            ),
            text_encoder=CLIPTextModel(_clip_text_config(tokenizer)),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=DRAWING_SIZE // 2,  # the autoencoder halves each side
                in_channels=4,
                out_channels=4,
                block_out_channels=(8, 16),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=_CLIP_SHAPE["hidden_size"],
                attention_head_dim=2,
                norm_num_groups=2,
            ),
            scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def build_sd3(folder: Path, seed: int = 0) -> Path:
    """Write a Stable Diffusion 3 pipeline without its T5: load it with ``text_encoder_3=None, tokenizer_3=None``."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection

    tokenizer = _clip_tokenizer()
    width = _CLIP_SHAPE["hidden_size"]
    with _seeded(seed):
        pipeline = StableDiffusion3Pipeline(
            vae=AutoencoderKL(
                block_out_channels=(8,),
                norm_num_groups=2,
                use_quant_conv=False,
                use_post_quant_conv=False,
                scaling_factor=1.5,
                shift_factor=0.06,
            ),
            text_encoder=CLIPTextModelWithProjection(_clip_text_config(tokenizer)),
            tokenizer=tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(_clip_text_config(tokenizer)),
            tokenizer_2=tokenizer,
            text_encoder_3=None,
            tokenizer_3=None,
            transformer=SD3Transformer2DModel(
                sample_size=DRAWING_SIZE,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=1,
                num_attention_heads=2,
                attention_head_dim=8,
                caption_projection_dim=16,
                joint_attention_dim=2 * width,  # both text encoders side by side
                pooled_projection_dim=2 * width,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    pipeline.save_pretrained(folder)
    return folder


_CLIP_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw weights from a seed and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _save(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def _byte_pair_tokenizer(*, special: list[str], begin: bool = False) -> Any:
    """Train a byte-level tokenizer that pads on the left; ``begin`` puts a beginning of sequence before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=special,
        padding_side="left",
    )


def _clip_tokenizer() -> Any:
    """Make CLIP's tokenizer with no merges: one token per byte, and per byte that ends a word."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    entries = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, merges=[], model_max_length=77)


def _clip_text_config(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        **_CLIP_SHAPE,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=_CLIP_SHAPE["hidden_size"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
