"""The speed of this device: real steps of a few of the policy's layers, with random weights."""

import copy
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.checkpointing import checkpoint_layers
from synthalign.dpo.fused import fuse
from synthalign.dpo.policy import adapters_off, train_language
from synthalign.planning.run import Run
from synthalign.planning.step import blank_features, count, logps, skeleton
from synthalign.vlm.families import base_of, image_token_of

LAYERS = 2
"""Of the decoder that are tried: the last computes less than the others, so one alone would not do."""


class Speed(NamedTuple):
    """How fast a device computes."""

    operations: float  # floating-point operations a second
    source: str  # how that was found


def calibrate(run: Run, batch: PreferenceBatch, device: torch.device, steps: int) -> Speed:
    """Take real steps with LAYERS decoder layers, and divide their operations by the time of the fastest.

    Weights are random, and never quantised. Images are not encoded: the encoder is taken to be as fast.

    Args:
        run: Its shapes and settings, with a layout that carries the model.
        batch: What a device gets.
        device: Where to compute.
        steps: How many, after one that warms up.
    """
    from transformers import AutoModelForImageTextToText

    run = replace(run, config=_cut(run.config), quantization=None)
    fake = skeleton(
        run.config, dtype=run.dtype, lora=run.lora, gradient_checkpointing=run.gradient_checkpointing, cast=run.cast
    )
    reference = "cached" if run.reference == "copy" else run.reference
    counted = count(fake, batch, run.layout, reference=reference, autocast=run.autocast, features_kept=True)
    dtype = base_of(fake).get_input_embeddings().weight.dtype
    with device:
        network: Any = AutoModelForImageTextToText.from_config(run.config, dtype=dtype).requires_grad_(False).eval()
        if run.lora is None:
            train_language(network)
        else:
            network = run.lora(network)
    if run.fused:
        fuse(network)
    if run.gradient_checkpointing:
        checkpoint_layers(network)
    laid = run.layout(network, batch)
    features = blank_features(network, int((laid.inputs["input_ids"] == image_token_of(network)).sum()))
    mixed = torch.autocast(device.type, run.autocast) if run.autocast is not None else nullcontext()

    def step() -> None:
        with mixed:
            if reference == "adapters_off":
                with torch.no_grad(), adapters_off(network):
                    logps(network, laid, features)
            scored = logps(network, laid, features).sum()
        scored.backward()
        network.zero_grad()

    step()
    taken = min(_seconds(step, device) for _ in range(steps))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    source = f"{steps} real steps of {LAYERS} layers with random weights on this {name}"
    return Speed(sum(counted.operations.values()) / taken, source)


def _seconds(work: Any, device: torch.device) -> float:  # noqa: ANN401
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _cut(config: Any) -> Any:  # noqa: ANN401 - any configuration
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = min(LAYERS, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:LAYERS]
    return config
