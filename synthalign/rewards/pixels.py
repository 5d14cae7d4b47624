"""Images as the CLIP family sees them: a square of the side a model was trained on, and normalised.

Written out, because what a processor of transformers computes depends on whether torchvision is installed.
Shapes: S side of the square, px.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that CLIP (arXiv 2103.00020) was trained on, by channel, in [0, 1]."""


def cut_square(image: Image.Image, side: int) -> Tensor:
    """Return the middle of an image whose shorter side was made S, shape (3, S, S).

    As torchvision's Resize and CenterCrop do to a PIL image.
    """
    image = image.convert("RGB")
    shorter = min(image.size)
    width, height = (int(side * length / shorter) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return _normalised(_tensor(image.crop((left, top, left + side, top + side))))


def whole_square(image: Image.Image, side: int, *, antialias: bool) -> Tensor:
    """Return a whole image whose longer side was made S, with black on both sides of the shorter, shape (3, S, S).

    As HPSv2's own transform does to a tensor, whose values may leave [0, 1] a little on the way.
    """
    pixels = _tensor(image.convert("RGB"))
    height, width = (max(1, round(length * side / max(image.size))) for length in pixels.shape[1:])
    if (height, width) != pixels.shape[1:]:
        pixels = interpolate(
            pixels[None], (height, width), mode="bicubic", align_corners=False, antialias=antialias
        ).squeeze(0)
    left, top = (side - width) // 2, (side - height) // 2
    return _normalised(pad(pixels, (left, side - width - left, top, side - height - top)))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _normalised(pixels: Tensor) -> Tensor:
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
