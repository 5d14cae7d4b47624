"""Encoded images: the vision tower and the projector run once for each distinct image of a batch.

G distinct images, D width of the language model.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.families import base_of, image_token_of, takes_features, trains_encoder


class Features(Protocol):
    """The images of a batch, ready to be put into its prompts."""

    def inputs(self, order: Sequence[int]) -> dict[str, Any]:
        """Return what the model takes for the images in this order, each given by its place in the batch."""
        ...


class EncodedImage(NamedTuple):
    """One image in the language model's width: (tokens, D) for the prompt, and for each of the layers that add more."""

    tokens: Tensor
    deep: tuple[Tensor, ...] = ()


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


class Pixels(NamedTuple):
    """Images of a model that takes nothing but pixels, one row each."""

    images: dict[str, Tensor]

    def inputs(self, order: Sequence[int]) -> dict[str, Any]:
        """Repeat the pixels in this order."""
        return {key: value[torch.as_tensor(order, device=value.device)] for key, value in self.images.items()}


class KeptFeatures:
    """Features of images seen before, in the CPU's memory: worth it while tower and projector are frozen.

    Args:
        limit_gib: Memory that they may take, GiB; a batch with an image beyond it is encoded whole every time.
    """

    def __init__(self, limit_gib: float) -> None:
        self.room = int(limit_gib * 2**30)
        self.known: dict[str, EncodedImage] = {}

    def get(self, image_id: str, device: torch.device) -> EncodedImage | None:
        """Return an image's features on a device, if they are known."""
        known = self.known.get(image_id)
        return None if known is None else _map(known, lambda one: one.to(device, non_blocking=True))

    def keep(self, image_id: str, encoded: EncodedImage) -> None:
        """Keep an image's features if there is room."""
        size = sum(one.numel() * one.element_size() for one in (encoded.tokens, *encoded.deep))
        if image_id not in self.known and size <= self.room:
            self.room -= size
            self.known[image_id] = _map(encoded, lambda one: one.detach().to("cpu", copy=True))


def image_features(network: Any, batch: PreferenceBatch, kept: KeptFeatures | None = None) -> Features:  # noqa: ANN401
    """Encode the G images of a batch, without gradient unless tower or projector are trained.

    Args:
        network: The model, PEFT's wrapper included.
        batch: The pairs, their images on the model's device.
        kept: Features of earlier batches; looked up, and added to.

    Raises:
        ValueError: A prompt has another number of places than its image fills.
    """
    base = base_of(network)
    dtype = base.get_input_embeddings().weight.dtype
    images = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.images.items()}
    if not takes_features(network):
        return Pixels(images)
    trained = trains_encoder(network)
    if kept is not None and not trained:
        device = next(iter(images.values())).device
        known = [kept.get(image_id, device) for image_id in batch.image_ids]
        if all(one is not None for one in known):
            return EncodedImages([one for one in known if one is not None], _joined(base))
    with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
        output = base.model.get_image_features(**images, return_dict=True)
    encoded = _split(output, _places(network, batch))
    if kept is not None and not trained:
        for image_id, one in zip(batch.image_ids, encoded, strict=True):
            kept.keep(image_id, one)
    return EncodedImages(encoded, _joined(base))


def _joined(base: Any) -> bool:  # noqa: ANN401
    """Whether a model reads its images as one tensor; the others concatenate a list."""
    return base.config.model_type in ("paligemma", "gemma3")


def _places(network: Any, batch: PreferenceBatch) -> list[int]:  # noqa: ANN401
    """Count the tokens that each image fills in its prompt."""
    token = image_token_of(network)
    first = {place: pair for pair, place in reversed(list(enumerate(batch.image_of)))}
    return [int((batch.prompts[first[place]]["input_ids"] == token).sum()) for place in range(len(batch.image_ids))]


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


def _map(encoded: EncodedImage, change: Any) -> EncodedImage:  # noqa: ANN401
    return EncodedImage(change(encoded.tokens), tuple(change(one) for one in encoded.deep))
