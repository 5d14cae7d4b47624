"""The floor: the time of the products that answers cannot do without, at the rate of this device's best product.

What is counted, in floating-point operations, two for each multiplication and its addition:

- Images, each one once: the tower's layers that are read (LLaVA reads the last but one), and the projector.
- Language model, every distinct token once: what comes before the image, the image, each question, and all tokens of
  each sample but its last, which never enters.
- Attention: two products for each pair of tokens that see one another.
- Head: one product for each question's first token, which its samples share, and for each further token of a sample.
- In the last layer, queries, output projection and MLP only of tokens that are followed by one that is drawn; its keys
  and values of all. `whole` is without this, every token through all of every layer.

Beside it the same products with those of answers at the rate of a step: a product of N rows, one for each answer, with
all weights in turn, reaches less than the best. Taken together, those are "sized".

Not counted: norms, activations, softmax, the drawing of a token, copies, the processing of images and texts.
"""

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from ladder.measure import seconds  # type: ignore[import-not-found]
from ladder.scene import IMAGE  # type: ignore[import-not-found]
from torch import Tensor

from .scene import Scene, prompts


class Run(NamedTuple):
    """Tokens one behind the other that enter the model once: how many, how many they see before them, how many read.

    Those read are its last ones.
    """

    tokens: int
    before: int
    read: int


class Floor(NamedTuple):
    """Operations, by what they are for."""

    images: float
    prompts: float
    answers: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self)


class Rates(NamedTuple):
    """Operations a second."""

    best: float  # of the matrix products that occur
    step: float  # of those with which all answers get one token more


def floor(scene: Scene, *, whole: bool = False) -> Floor:
    """Count the operations of a scene's answers.

    Args:
        scene: What is asked, of a LLaVA.
        whole: Count all tokens in the last layer too.
    """
    asked, answered = needed_runs(scene)
    num_images = len({id(image) for image in scene.images})
    return Floor(
        num_images * image(scene.network),
        language(scene.network, asked, whole=whole),
        language(scene.network, answered, whole=whole),
    )


def needed_runs(scene: Scene) -> tuple[list[Run], list[Run]]:
    """Return the runs of tokens of prompts, and those of answers."""
    once = scene.asked_once
    prefix, suffixes = prompts(once.inputs())
    before = prefix.index(IMAGE)
    asked = [Run(before, 0, 0)]
    asked += [Run(len(prefix) - before, before, 0)] * len({id(image) for image in scene.images})
    asked += [Run(len(suffix), len(prefix), 1) for suffix in suffixes]
    said = scene.new_tokens - 1
    answered = [Run(said, len(prefix) + len(suffix), said) for suffix in suffixes for _ in range(scene.num_samples)]
    return asked, answered


def image(network: Any) -> float:  # noqa: ANN401
    """Count the encoding of one image."""
    config = network.config.vision_config
    width, patches = config.hidden_size, (config.image_size // config.patch_size) ** 2
    states = patches + 1  # CLIP's class token
    layers = config.num_hidden_layers + 1 + network.config.vision_feature_layer
    linears = 4 * width**2 + 2 * width * config.intermediate_size
    tower = layers * (2.0 * states * linears + 4.0 * states**2 * width)
    into = 2.0 * patches * config.num_channels * config.patch_size**2 * width
    text = network.config.text_config.hidden_size
    return into + tower + 2.0 * patches * (width * text + text * text)


def language(network: Any, runs: list[Run], *, whole: bool) -> float:  # noqa: ANN401
    """Count the language model and its head over runs."""
    everything = sum(run.tokens for run in runs)
    layers = network.model.language_model.layers
    total = 2.0 * sum(run.read for run in runs) * network.get_output_embeddings().weight.numel()
    for place, layer in enumerate(layers):
        partly = place == len(layers) - 1 and not whole
        read = sum(run.read for run in runs) if partly else everything
        for name, weight in _weights(layer):
            total += 2.0 * (everything if name in ("k_proj", "v_proj") else read) * weight.numel()
        width = layer.self_attn.q_proj.weight.shape[0]
        total += 4.0 * width * sum(_seen(run, run.read if partly else run.tokens) for run in runs)
    return total


def _weights(layer: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    for name, module in layer.named_modules():
        if isinstance(module, torch.nn.Linear):
            yield name.rsplit(".", 1)[-1], module.weight


def _seen(run: Run, reading: int) -> float:
    """Count what the last `reading` tokens of a run see, themselves included."""
    skipped = run.tokens - reading
    return reading * run.before + (run.tokens * (run.tokens + 1) - skipped * (skipped + 1)) / 2


def rates(scene: Scene) -> Rates:
    """Measure the rates of the matrix products that occur."""
    network = scene.network
    head = network.get_output_embeddings().weight
    layers = network.model.language_model.layers
    prompted = sum(run.tokens for run in needed_runs(scene)[0])
    answered = len(scene.questions)
    outs, ins = layers[0].mlp.gate_proj.weight.shape
    of_step = [weight for layer in layers for _, weight in _weights(layer)] + [head]
    return Rates(
        max(_rate(prompted, [head.new_ones(shape)]) for shape in ((outs, ins), (ins, outs))),
        _rate(answered, of_step),
    )


def _rate(rows: int, weights: list[Tensor]) -> float:
    """Return the rate of the products of so many rows with each of the weights in turn, operations a second."""
    inputs = {width: weights[0].new_ones(rows, width) for width in {weight.shape[1] for weight in weights}}

    def products() -> None:
        for weight in weights:
            inputs[weight.shape[1]] @ weight.T

    products()
    taken = statistics.median(seconds(products, weights[0].device) for _ in range(5))
    return 2.0 * rows * sum(weight.numel() for weight in weights) / taken
