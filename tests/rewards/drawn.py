"""Weights and pictures that come out the same on every machine and version: from NumPy's frozen generator.

What a golden file was made with and what its test scores are drawn here, so neither has to be stored.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def draw_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Draw a tensor for each name and shape; matrices keep the size of what they are applied to, roughly."""
    weights = {}
    for name, shape in shapes.items():
        noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
        if len(shape) >= 2:
            noise *= 1.5 / np.prod(shape[1:]) ** 0.5
        else:
            noise *= 0.2
            if name.endswith("weight"):  # of a norm
                noise += 1
        weights[name] = torch.from_numpy(np.asarray(noise)).float()
    return weights


def draw_images(sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
    """Draw an image of blocks of 4 px for each (width, height)."""
    images = []
    for number, (width, height) in enumerate(sizes):
        blocks = np.random.RandomState(number).randint(0, 256, (height // 4 + 1, width // 4 + 1, 3))
        pixels = blocks.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
        images.append(Image.fromarray(pixels.astype(np.uint8)))
    return images
