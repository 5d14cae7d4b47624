"""Encoded images: the vision tower and the projector run once for each distinct image of a batch.

G distinct images, D width of the language model.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.families import trains_encoder
from synthalign.vlm.families import base_of, image_token_of, takes_features
from synthalign.vlm.features import EncodedImages, encode_images, joins
from synthalign.vlm.kept import KeptFeatures, numbers_of


class Features(Protocol):
    """The images of a batch, ready to be put into its prompts."""

    def inputs(self, order: Sequence[int]) -> dict[str, Any]:
        """Return what the model takes for the images in this order, each given by its place in the batch."""
        ...


class Pixels(NamedTuple):
    """Images of a model that takes nothing but pixels, one row each."""

    images: dict[str, Tensor]

    def inputs(self, order: Sequence[int]) -> dict[str, Any]:
        """Repeat the pixels in this order."""
        return {key: value[torch.as_tensor(order, device=value.device)] for key, value in self.images.items()}


def image_features(network: Any, batch: PreferenceBatch, kept: KeptFeatures | None = None) -> Features:  # noqa: ANN401
    """Encode the G images of a batch, without gradient unless tower or projector are trained.

    Args:
        network: The model, PEFT's wrapper included.
        batch: The pairs, their images on the model's device.
        kept: Features of earlier batches; looked up, and added to. A batch with an image that is not there is encoded
            whole.

    Raises:
        ValueError: A prompt has another number of places than its image fills.
    """
    dtype = base_of(network).get_input_embeddings().weight.dtype
    images = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.images.items()}
    if not takes_features(network):
        return Pixels(images)
    trained = trains_encoder(network)
    names, numbers = [f"pair {image_id}" for image_id in batch.image_ids], numbers_of(network)
    if kept is not None and not trained:
        device = next(iter(images.values())).device
        known = [kept.get(name, numbers) for name in names]
        if all(one is not None for one in known):
            images_known = [one.encoded.to(device) for one in known if one is not None]
            return EncodedImages(images_known, joins(base_of(network)))
    with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
        encoded = encode_images(network, images, _places(network, batch))
    if kept is not None and not trained:
        for name, one in zip(names, encoded.images, strict=True):
            kept.keep(name, numbers, one)
    return encoded


def _places(network: Any, batch: PreferenceBatch) -> list[int]:  # noqa: ANN401
    """Count the tokens that each image fills in its prompt."""
    token = image_token_of(network)
    first = {place: pair for pair, place in reversed(list(enumerate(batch.image_of)))}
    return [int((batch.prompts[first[place]]["input_ids"] == token).sum()) for place in range(len(batch.image_ids))]
