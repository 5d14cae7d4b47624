"""ImageReward-v1.0: a BLIP that reads the prompt while it looks at the image, and a head that tells one number."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from synthalign.batching import in_batches
from synthalign.checkpoints import assemble, find_file, read_file
from synthalign.rewards.pixels import cut_square
from synthalign.weights import DType, check_folder, free_cuda, load, resolve_device, resolve_dtype

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's outputs, by which they become scores: image-reward 1.5, ImageReward.py."""

LONGEST_PROMPT = 35
"""Tokens that are read of a prompt."""

HEAD_WIDTH = 64
"""Of each attention head of the vision tower, in BLIP's base and large."""

TEXT_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "layer_norm_eps",
    "hidden_act",
)
"""What is read of med_config.json; the rest says how it was trained."""

VISION_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "blocks": "encoder.layers",
    "norm": "post_layernorm",
}
"""How a name of the vision tower begins, theirs to ours."""

BLOCK_NAMES = {
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}
"""What it has inside a block, theirs to ours."""


@dataclass(frozen=True, kw_only=True)
class ImageRewardV1:
    """Scores an image as ImageReward-v1.0 does (Xu et al. 2023, arXiv 2304.05977): an ImageReward.

    Args:
        model: Folder or hub id that holds the checkpoint and the text encoder's configuration, med_config.json.
        file: The checkpoint.
        tokenizer: Folder or hub id of BERT's tokenizer.
        revision: Commit, tag or branch of the model on the hub.
        dtype: Type of the weights; auto: as they were saved.
        device: Where to run; auto: the first CUDA device, or the CPU.
        batch_size: Images scored at once.
    """

    model: str = "THUDM/ImageReward"
    file: str = "ImageReward.pt"
    tokenizer: str = "google-bert/bert-base-uncased"
    revision: str | None = None
    dtype: DType = "float32"
    device: str = "auto"
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant, and a folder that is not there."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")
        check_folder(self.model)
        check_folder(self.tokenizer)

    @cached_property
    def network(self) -> Any:  # noqa: ANN401
        """The loaded model, in eval mode: vision, text and head."""
        from transformers import BlipTextModel, BlipVisionModel

        tensors = read_file(self.model, self.file, revision=self.revision)
        source, dtype = f"{self.file} of model {self.model!r}", resolve_dtype(self.dtype)
        vision = _below("blip.visual_encoder.", tensors)
        if not {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= set(vision):
            raise ValueError(f"{source} is no ImageReward: it has no weights under blip.visual_encoder")
        config = self._text_config(vision["cls_token"].shape[-1])
        parts = {
            "vision": assemble(BlipVisionModel, _vision_config(vision), _renamed(vision), source=source, dtype=dtype),
            "text": assemble(
                BlipTextModel,
                config,
                _below("blip.text_encoder.", tensors),
                source=source,
                dtype=dtype,
                add_pooling_layer=False,
            ),
            "head": _head(_below("mlp.layers.", tensors), source),
        }
        return nn.ModuleDict(parts).to(resolve_device(self.device)).eval()

    def _text_config(self, seen_width: int) -> Any:  # noqa: ANN401
        from transformers import BlipTextConfig

        path = find_file(self.model, "med_config.json", revision=self.revision)
        try:
            described = json.loads(path.read_bytes())
            shape = {name: described[name] for name in TEXT_SETTINGS}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no configuration of a BERT: {error!r}") from error
        return BlipTextConfig(**shape, encoder_hidden_size=seen_width, is_decoder=True)

    @cached_property
    def words(self) -> Any:  # noqa: ANN401
        """The loaded tokenizer, with the two tokens BLIP adds."""
        from transformers import AutoTokenizer

        words = load(AutoTokenizer, self.tokenizer)
        words.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
        return words

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Tensor:
        """Return n scores, shape (n,), float32 on the CPU; higher is better. Of a prompt, 35 tokens are read."""
        rows = list(zip(prompts, images, strict=True))
        return torch.tensor(in_batches(rows, self.batch_size, self._score, type(self).__name__))

    @torch.no_grad()
    def _score(self, rows: Sequence[tuple[str, Image]]) -> list[float]:
        vision, text, head = (self.network[name] for name in ("vision", "text", "head"))
        tokens = self.words(
            [prompt for prompt, _ in rows],
            padding=True,
            truncation=True,
            max_length=LONGEST_PROMPT,
            return_tensors="pt",
        ).to(vision.device)
        side = vision.config.image_size
        pixels = torch.stack([cut_square(image, side) for _, image in rows]).to(vision.device, vision.dtype)
        seen = vision(pixel_values=pixels).last_hidden_state  # (n, patches, width)
        read = text(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        ).last_hidden_state
        told = head(read[:, 0].float())[:, 0]
        return ((told - MEAN) / STD).tolist()

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        self.__dict__.pop("network", None)
        free_cuda()


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _vision_config(tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
    """Read the vision tower's shape off its weights: the checkpoint comes with no configuration of it."""
    from transformers import BlipVisionConfig

    width, _, _, patch_size = tensors["patch_embed.proj.weight"].shape
    num_patches = tensors["pos_embed"].shape[1] - 1
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=len(blocks),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=patch_size * round(num_patches**0.5),
        patch_size=patch_size,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for theirs, tensor in tensors.items():
        beginning = next((b for b in VISION_NAMES if theirs == b or theirs.startswith(f"{b}.")), None)
        if beginning is not None:
            name = VISION_NAMES[beginning] + theirs.removeprefix(beginning)
            for known, ours in BLOCK_NAMES.items():
                name = name.replace(known, ours)
            renamed[name] = tensor
    return renamed


def _head(tensors: Mapping[str, Tensor], source: str) -> nn.Sequential:
    """Make the head: layers one after the other, with nothing between them; in float32, as its authors run it."""
    layers = []
    for number in sorted({int(name.partition(".")[0]) for name in tensors}):
        if missing := [kind for kind in ("weight", "bias") if f"{number}.{kind}" not in tensors]:
            raise ValueError(f"{source} lacks weights of ImageReward: mlp.layers.{number}.{missing[0]}")
        weight, bias = tensors[f"{number}.weight"], tensors[f"{number}.bias"]
        layers.append(nn.Linear(weight.shape[1], weight.shape[0]))
        layers[-1].load_state_dict({"weight": weight, "bias": bias})
    if not layers or layers[-1].out_features != 1:
        raise ValueError(f"{source} is no ImageReward: it has no head under mlp.layers that ends in one number")
    return nn.Sequential(*layers)
