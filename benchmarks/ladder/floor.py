"""The floor: the time of the products that a step cannot do without, at the rate of this device's best product.

What is counted, in floating-point operations, two for each multiplication and its addition:

- Images, each distinct one once and forward only: the tower's layers that are read (LLaVA reads the last but one), and
  the projector. Nothing where features are kept.
- Language model, every distinct token once, tokens behind a common prefix not counted again; a response's last token
  never enters. Forward for the reference without adapters, forward for the policy with them, and backward the gradient
  of every input but the embeddings' (weights are frozen) and both gradients of the low-rank factors.
- Attention: two products for each pair of tokens that see one another, 2.5 times that going back, where the
  probabilities are computed again: nobody keeps them.
- Head: one product forward for the reference, two for the policy, for scored tokens only. It is frozen.
- In the last layer, queries, output projection and MLP only of tokens that are scored; its keys and values of all.
  `whole` is without this, every token through all of every layer.

Not counted: norms, activations, softmax, copies, the optimizer. So nothing reaches it.
"""

import re
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.families import base_of, decoder_of

from .measure import seconds


class Run(NamedTuple):
    """Tokens one behind the other that enter the model once: how many, how many they see before them, how many scored.

    Those scored are its last ones.
    """

    tokens: int
    before: int
    scored: int


class Floor(NamedTuple):
    """Operations of a step."""

    on_the_fly: float
    cached_reference: float
    cached: float  # reference and features


def floor(network: Any, batch: PreferenceBatch, *, whole: bool = False) -> Floor:  # noqa: ANN401
    """Count a step's operations.

    Args:
        network: Model with LoRA on every linear layer of its language model.
        batch: Two pairs or more.
        whole: Count all tokens in the last layer too.
    """
    runs = list(needed_runs(batch))
    targets = sum(len(side) for side in (*batch.chosen, *batch.rejected))
    head = 2.0 * targets * base_of(network).get_output_embeddings().weight.numel()
    frozen, adapted, back = language(network, runs, whole=whole)
    seen = images(network, batch)
    policy = adapted + head + back + head
    return Floor(seen + frozen + head + policy, seen + policy, policy)


def needed_runs(batch: PreferenceBatch) -> Iterator[Run]:
    """Give the tokens that must enter the model: what prompts about one image share, their rests, the responses."""
    about: dict[int, list[int]] = {}
    for pair, image in enumerate(batch.image_of):
        about.setdefault(image, []).append(pair)
    for pairs in about.values():
        prompts = [batch.prompts[pair]["input_ids"].tolist() for pair in pairs]
        shared = 0
        if len(pairs) > 1:
            shortest = min(map(len, prompts)) - 1
            same = (len({prompt[place] for prompt in prompts}) == 1 for place in range(shortest))
            shared = next((place for place, alike in enumerate(same) if not alike), shortest)
            yield Run(shared, 0, 0)
        for pair, prompt in zip(pairs, prompts, strict=True):
            yield Run(len(prompt) - shared, shared, 1)
            for side in (batch.chosen[pair], batch.rejected[pair]):
                yield Run(len(side) - 1, len(prompt), len(side) - 1)


def language(network: Any, runs: list[Run], *, whole: bool) -> tuple[float, float, float]:  # noqa: ANN401
    """Count the language model: forward without adapters, forward with them, backward."""
    everything = sum(run.tokens for run in runs)
    read = everything if whole else sum(run.scored for run in runs)
    seen = attention(network, runs, whole=whole)
    frozen, adapted, back = seen, seen, 2.5 * seen
    layers = decoder_of(network).layers
    for place, layer in enumerate(layers):
        for name, linear in ((n, m) for n, m in layer.named_modules() if hasattr(m, "base_layer")):
            kind = name.rsplit(".", 1)[-1]
            tokens = read if place == len(layers) - 1 and kind not in ("k_proj", "v_proj") else everything
            outs, ins = linear.base_layer.weight.shape
            rank = next(iter(linear.r.values()))
            plain = 2.0 * tokens * outs * ins
            low = 2.0 * tokens * rank * (outs + ins)
            of_embeddings = place == 0 and kind in ("q_proj", "k_proj", "v_proj")  # whose gradient nobody wants
            frozen += plain
            adapted += plain + low
            back += 2 * low + (-2.0 * tokens * rank * ins if of_embeddings else plain)
    return frozen, adapted, back


def attention(network: Any, runs: list[Run], *, whole: bool) -> float:  # noqa: ANN401
    """Count the attention of a forward."""
    total = 0.0
    layers = decoder_of(network).layers
    for place, layer in enumerate(layers):
        width = layer.self_attn.q_proj.base_layer.weight.shape[0]
        read = place == len(layers) - 1 and not whole
        total += 4.0 * width * sum(_seen(run, run.scored if read else run.tokens) for run in runs)
    return total


def _seen(run: Run, reading: int) -> float:
    """Count what the last `reading` tokens of a run see, themselves included."""
    skipped = run.tokens - reading
    return reading * run.before + (run.tokens * (run.tokens + 1) - skipped * (skipped + 1)) / 2


def images(network: Any, batch: PreferenceBatch) -> float:  # noqa: ANN401
    """Count the encoding of the distinct images, by watching it, less the layers that nobody reads."""
    base = base_of(network)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        base.model.get_image_features(**batch.images, return_dict=True)
    unread = -1 - getattr(base.config, "vision_feature_layer", -1)
    layers = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items() if re.search(r"s\.\d+$", name)}
    ordered = sorted(layers, key=lambda name: int(name.rsplit(".", 1)[-1]))
    return counter.get_total_flops() - sum(layers[name] for name in ordered[len(ordered) - unread :])


def peak(network: Any, batch: PreferenceBatch, dtype: torch.dtype) -> float:  # noqa: ANN401
    """Measure the best rate of the matrix products that occur in a step, operations a second."""
    weight = base_of(network).get_output_embeddings().weight
    mlp = decoder_of(network).layers[0].mlp.gate_proj.base_layer.weight
    tokens = sum(run.tokens for run in needed_runs(batch))
    scored = sum(len(side) for side in (*batch.chosen, *batch.rejected))
    sizes = ((tokens, mlp.shape), (scored, weight.shape))
    products = [(rows, *shape) for rows, one in sizes for shape in (one, one[::-1])]
    best = 0.0
    for rows, outs, ins in products:
        left, right = (torch.randn(shape, dtype=dtype, device=weight.device) for shape in ((rows, ins), (outs, ins)))
        left @ right.T
        taken = [seconds(lambda: left @ right.T, weight.device) for _ in range(5)]  # noqa: B023
        best = max(best, 2.0 * rows * outs * ins / statistics.median(taken))
    return best
