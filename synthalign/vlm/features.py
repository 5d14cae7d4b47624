"""Encoded images: what vision tower and projector make of an image, once, for any number of prompts about it.

D width of the language model.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthalign.vlm.families import base_of


class EncodedImage(NamedTuple):
    """One image in the language model's width: (tokens, D) for the prompt, and for each of the layers that add more."""

    tokens: Tensor
    deep: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> "EncodedImage":
        """Return the image on a device."""
        tokens, *deep = (one.to(device, non_blocking=True) for one in (self.tokens, *self.deep))
        return EncodedImage(tokens, tuple(deep))


class EncoderOutput(NamedTuple):
    """What a model's forward reads of its encoder's output."""

    pooler_output: Tensor | list[Tensor]
    deepstack_features: list[list[Tensor]] | None


class EncodedImages(NamedTuple):
    """Images that went through the tower once."""

    images: list[EncodedImage]
    joined: bool  # whether the model wants one tensor or a list

    def inputs(self, order: Sequence[int]) -> dict[str, Any]:
        """Return the images in this order, as the model's own encoder would have given them."""
        tokens = torch.cat([self.images[place].tokens for place in order])
        levels = [[torch.cat(level)] for level in zip(*(self.images[place].deep for place in order), strict=True)]
        output = EncoderOutput(tokens if self.joined else [tokens], levels or None)
        return {"mm_encoder_outputs": {"image": output}}


def encode_images(network: Any, images: dict[str, Tensor], places: list[int]) -> EncodedImages:  # noqa: ANN401
    """Run tower and projector.

    Args:
        network: The model, which takes encoded images.
        images: What its processor gives for the images, on the model's device and in its dtype.
        places: Of each image, how many tokens it fills in a prompt.

    Raises:
        ValueError: The images fill another number of tokens.
    """
    base = base_of(network)
    return EncodedImages(_split(base.model.get_image_features(**images, return_dict=True), places), joins(base))


def joins(base: Any) -> bool:  # noqa: ANN401
    """Whether a model reads its images as one tensor; the others concatenate a list."""
    return base.config.model_type in ("paligemma", "gemma3", "internvl")


def _split(output: Any, places: list[int]) -> list[EncodedImage]:  # noqa: ANN401
    """Cut an encoder's output into images."""
    tokens = _flat(output.pooler_output)
    if len(tokens) != sum(places):
        raise ValueError(f"{sum(places)} places in the prompts are for images, which fill {len(tokens)}")
    levels = [_flat(level).split(places) for level in getattr(output, "deepstack_features", None) or ()]
    deep = list(zip(*levels, strict=True)) or [()] * len(places)
    return [EncodedImage(*one) for one in zip(tokens.split(places), deep, strict=True)]


def _flat(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Join features that came in one tensor or several, (tokens of all images, D)."""
    pieces = [features] if isinstance(features, Tensor) else features
    return torch.cat([piece.flatten(0, -2) for piece in pieces])
