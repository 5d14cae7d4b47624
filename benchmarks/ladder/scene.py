"""What every contender is given: a random model and one batch, as TRL's own collator puts it together.

B pairs, G distinct images, L tokens of the longest row.
"""

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import transformers as hf
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.processing_utils import ProcessorMixin

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.policy import LANGUAGE_LINEARS

BEGIN, END, PAD, IMAGE, VISION_START, VISION_END = range(1, 7)
FIRST_WORD = 10
"""Tokens from here on are words."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model and the lengths of its batch.

    Args:
        config: Makes the model's configuration.
        image_tokens: Places of an image in a prompt; for Qwen-VL a square, of merged patches.
        rank: Of the LoRA adapters on every linear layer of the language model; alpha is twice as much.
        lengths: Tokens of question, chosen and rejected response of each pair, the responses' end included. The
            batch of pairs takes the first two, each about an image of its own; that of one image takes all four.
    """

    config: Callable[[], Any]
    image_tokens: int
    rank: int
    lengths: tuple[tuple[int, int, int], ...]


class Scene(NamedTuple):
    """A model without adapters, and a batch for it."""

    network: Any
    rank: int
    collated: dict[str, Tensor]  # as TRL's collator makes it: B chosen rows, then B rejected ones
    batch: PreferenceBatch  # the same tokens and pixels as we take them


def _llava(*, tower: dict[str, int], text: dict[str, int], image: int) -> Any:  # noqa: ANN401 - a configuration
    return hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**tower, image_size=image, patch_size=14),
        text_config=hf.LlamaConfig(**text, **_SPECIAL),
        image_token_id=IMAGE,
        image_seq_length=(image // 14) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def _shape(hidden: int, inner: int, layers: int, heads: int, **more: int) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {**dict(zip(names, (hidden, inner, layers, heads), strict=True)), **more}


def _qwen() -> Any:  # noqa: ANN401 - a configuration
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = _shape(3584, 18944, 28, 28, num_key_value_heads=4, vocab_size=152064, max_position_embeddings=32768)
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    return hf.Qwen2_5_VLConfig(
        text_config={**text, **_SPECIAL, "rope_parameters": rope},
        vision_config={**tower, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
        image_token_id=IMAGE,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        video_token_id=VISION_END + 1,
    )


_SPECIAL = {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD}
_LONG = ((50, 200, 150), (46, 180, 160), (54, 220, 140), (50, 200, 150))

SIZES = {
    "tiny": Size(
        config=lambda: _llava(tower=_shape(64, 256, 3, 2), text=_shape(64, 176, 3, 2, vocab_size=512), image=56),
        image_tokens=16,
        rank=4,
        lengths=((7, 12, 9), (5, 10, 11), (6, 8, 9), (8, 11, 7)),
    ),
    "small": Size(
        config=lambda: _llava(tower=_shape(384, 1536, 6, 6), text=_shape(512, 1408, 8, 8, vocab_size=32064), image=336),
        image_tokens=576,
        rank=16,
        lengths=((50, 126, 103), (47, 143, 101), (45, 125, 105), (50, 139, 103)),
    ),
    "llava-1.5-7b": Size(
        config=lambda: _llava(
            tower=_shape(1024, 4096, 24, 16), text=_shape(4096, 11008, 32, 32, vocab_size=32064), image=336
        ),
        image_tokens=576,
        rank=128,
        lengths=_LONG,
    ),
    "qwen2.5-vl-7b": Size(config=_qwen, image_tokens=1024, rank=128, lengths=_LONG),
}


def scene(size: Size, *, one_image: bool, dtype: torch.dtype, device: torch.device) -> Scene:
    """Make a model and a batch: two pairs about two images, or four about one; the same every time."""
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    torch.manual_seed(0)
    with device:
        network = hf.AutoModelForImageTextToText.from_config(size.config(), dtype=dtype).requires_grad_(False)
    pairs = rows(size, one_image=one_image)
    collate = DataCollatorForVisionPreference(processor(size, network.config), max_length=None)
    collated = {
        key: (value.to(dtype) if value.is_floating_point() else value).to(device)
        for key, value in collate([dict(row) for row in pairs]).items()
    }
    return Scene(network, size.rank, collated, as_ours(collated, [row["images"][0] for row in pairs]))


def twin(network: Any) -> Any:  # noqa: ANN401
    """Return a model of its own modules and hooks over the same frozen weights."""
    return deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})


def rows(size: Size, *, one_image: bool) -> list[dict[str, Any]]:
    """Return the data set: texts are numbers of tokens, and an image is the seed of its noise."""
    drawn = random.Random(0)
    words = min(size.config().get_text_config().vocab_size, 31000)

    def text(length: int) -> str:
        return " ".join(str(drawn.randrange(FIRST_WORD, words)) for _ in range(length))

    return [
        {
            "images": [0 if one_image else number],
            "prompt": text(question),
            "chosen": f"{text(chosen - 1)} {END}",
            "rejected": f"{text(rejected - 1)} {END}",
        }
        for number, (question, chosen, rejected) in enumerate(size.lengths[: 4 if one_image else 2])
    ]


def as_ours(collated: dict[str, Tensor], images: list[int]) -> PreferenceBatch:
    """Take a collated batch apart: B pairs, each image once."""
    ids, spoken = collated["input_ids"].cpu(), collated["completion_mask"].cpu().bool()
    kept = collated["attention_mask"].cpu().bool()
    distinct = list(dict.fromkeys(images))
    firsts = [images.index(image) for image in distinct]
    per_token = {key: value.cpu() for key, value in collated.items() if key in ("input_ids", "mm_token_type_ids")}
    pixels, grids = collated["pixel_values"], collated.get("image_grid_thw")
    encoded = pixels.chunk(2 * len(images))  # all images are of one size
    features = {"pixel_values": torch.cat([encoded[first] for first in firsts])}
    return PreferenceBatch(
        ids=[str(number) for number in range(len(images))],
        prompts=[
            {key: value[row][kept[row] & ~spoken[row]] for key, value in per_token.items()}
            for row in range(len(images))
        ],
        chosen=[ids[row][spoken[row]] for row in range(len(images))],
        rejected=[ids[row][spoken[row]] for row in range(len(images), 2 * len(images))],
        images=features if grids is None else {**features, "image_grid_thw": grids[firsts]},
        image_ids=[str(image) for image in distinct],
        image_of=[distinct.index(image) for image in images],
    )


def spread_adapters(network: Any) -> None:  # noqa: ANN401
    """Move every adapter away from where it begins, alike for all: at the start all losses are log 2."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(network.named_parameters()):
        if parameter.requires_grad:
            assert "lora_" in name, name
            drawn = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.data.copy_(drawn)


def adapters(size_rank: int) -> dict[str, Any]:
    """Return the settings of LoRA."""
    return {"r": size_rank, "alpha": 2 * size_rank, "target_modules": LANGUAGE_LINEARS}


class Numbers(ProcessorMixin):
    """A processor whose words are the tokens' numbers, and whose images are noise from a seed.

    Preprocessing is no part of a step, and this one needs neither a tokenizer's file nor torchvision.

    Args:
        tokenizer: Knows the token that pads.
        image_tokens: Places of an image in a prompt.
        pixels: Shape of what the model takes for an image.
        grid: Patches in time, height and width, for Qwen-VL; None for LLaVA.
    """

    def __init__(
        self,
        tokenizer: Any = None,  # noqa: ANN401
        *,
        image_tokens: int,
        pixels: tuple[int, ...],
        grid: tuple[int, int, int] | None,
    ) -> None:
        super().__init__(tokenizer)
        self.image_tokens, self.pixels, self.grid = image_tokens, pixels, grid

    def __call__(
        self,
        images: list[list[int]] | None = None,
        text: Sequence[str] = (),
        *,
        padding_side: str = "right",
        **others: Any,  # noqa: ANN401 - what TRL asks of any processor
    ) -> dict[str, Tensor]:
        """Encode texts, each behind an image where images are given."""
        image = [IMAGE] * self.image_tokens
        before = [BEGIN, *([VISION_START, *image, VISION_END] if self.grid else image)] if images is not None else []
        encoded = [torch.tensor([*before, *map(int, one.split())]) for one in text]
        ids = pad_sequence(encoded, True, PAD, padding_side)
        mask = pad_sequence([torch.ones_like(one) for one in encoded], True, 0, padding_side)
        output = {"input_ids": ids, "attention_mask": mask}
        if self.grid is not None:
            output["mm_token_type_ids"] = (ids == IMAGE).long()
        if images is not None:
            output["pixel_values"] = torch.cat([self._noise(seed) for (seed,) in images])
            if self.grid is not None:
                output["image_grid_thw"] = torch.tensor([self.grid] * len(images))
        return output

    def _noise(self, seed: int) -> Tensor:
        return torch.randn(self.pixels, generator=torch.Generator().manual_seed(seed))


def processor(size: Size, config: Any) -> Numbers:  # noqa: ANN401
    """Return the processor of a model."""
    vocabulary = {"<unk>": 0, "<s>": BEGIN, "</s>": END, "<pad>": PAD, "<image>": IMAGE}
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    if config.model_type == "llava":
        side = config.vision_config.image_size
        return Numbers(tokenizer, image_tokens=size.image_tokens, pixels=(1, 3, side, side), grid=None)
    side = 2 * round(size.image_tokens**0.5)  # four patches are one token
    pixels = (side * side, 3 * 2 * 14 * 14)
    return Numbers(tokenizer, image_tokens=size.image_tokens, pixels=pixels, grid=(1, side, side))
