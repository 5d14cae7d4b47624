"""Encoded images that outlast a call: the vision tower need not see an image again that it has seen.

They are right as long as tower and projector stay as they are, which `encoder_stays` tells.
"""

import hashlib
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from synthalign.vlm.families import base_of
from synthalign.vlm.features import EncodedImage

LARGE = 1024
"""Numbers beyond which a tensor of a processor's is pixels, of which no token depends on more than their shape."""


class Kept(NamedTuple):
    """An image seen before."""

    encoded: EncodedImage  # on the CPU
    outline: Any = None  # what the image processor gave for it, without the pixels; None where nobody asked for it


class KeptFeatures:
    """Features of images seen before, in the CPU's memory; of one model, and of one chat where they have outlines.

    Args:
        limit_gib: Memory that they may take, GiB; an image beyond it is encoded every time.
    """

    def __init__(self, limit_gib: float) -> None:
        self.room = int(limit_gib * 2**30)
        self.known: dict[tuple[str, str], Kept] = {}

    def get(self, image: str, numbers: str) -> Kept | None:
        """Return what is kept of an image.

        Args:
            image: Its name, or its `content`.
            numbers: How the model computes, by `numbers_of`.
        """
        return self.known.get((image, numbers))

    def keep(self, image: str, numbers: str, encoded: EncodedImage, outline: Any = None) -> None:  # noqa: ANN401
        """Keep an image's features if there is room."""
        size = sum(one.numel() * one.element_size() for one in (encoded.tokens, *encoded.deep))
        if (image, numbers) not in self.known and size <= self.room:
            self.room -= size
            tokens, *deep = (one.detach().to("cpu", copy=True) for one in (encoded.tokens, *encoded.deep))
            self.known[image, numbers] = Kept(EncodedImage(tokens, tuple(deep)), outline)


def content(image: Image.Image) -> str:
    """Return a digest of an image's pixels: the same for the same picture, opened however often."""
    digest = hashlib.blake2b(repr((image.mode, image.size, image.getpalette())).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()


def numbers_of(network: Any) -> str:  # noqa: ANN401
    """Name the numbers that a model computes in: features of others are not its own."""
    weight = base_of(network).get_input_embeddings().weight
    device = weight.device.type
    cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return f"{device} {weight.dtype} {cast}"


def outline(value: Any) -> Any:  # noqa: ANN401
    """Return what an image processor gave with every large tensor replaced by zeros that take no memory."""
    if isinstance(value, Tensor):
        return value.new_zeros(()).expand(value.shape) if value.numel() > LARGE else value
    if isinstance(value, list | tuple):
        return type(value)(outline(one) for one in value)
    return value
