"""Less memory for more time: decoder layers that compute their activations again in the backward pass."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from synthalign.dpo.attention import NAME, attending
from synthalign.vlm.families import decoder_of


def checkpoint_layers(network: Any, every: int = 1) -> int:  # noqa: ANN401
    """Let decoder layers of the language model keep nothing but their inputs for the backward pass.

    In eval mode as well, as a frozen model is in, where the switch of transformers does nothing; and without making the
    embeddings require gradients, which drags the backward pass through all that is frozen below the adapters.

    Args:
        network: A vision-language model, in PEFT's wrapper or bare.
        every: One of so many layers does it, the first to begin with; 1: all of them, 0: none.

    Returns:
        How many layers do it.

    Raises:
        ValueError: ``every`` is negative.
    """
    if every < 0:
        raise ValueError(f"every must be >= 0, got {every}")
    decoder = decoder_of(network)
    count = 0
    for number, layer in enumerate(decoder.layers):
        own = layer.__dict__.get("forward")  # another's, as of accelerate's offloading
        if isinstance(own, partial) and own.func is _checkpointed:
            own = own.args[1]
            del layer.forward
        if every and number % every == 0:
            layer.forward = partial(_checkpointed, layer, own, decoder)
            count += 1
        elif own is not None:
            layer.forward = own
    return count


def _checkpointed(
    layer: Any,  # noqa: ANN401
    own: Callable[..., Any] | None,
    decoder: Any,  # noqa: ANN401
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401 - as the layer takes them
) -> Any:  # noqa: ANN401
    """Run a layer. One that fills a cache does so once only."""
    forward = partial(type(layer).forward, layer) if own is None else own
    if not torch.is_grad_enabled() or kwargs.get("past_key_values") is not None:
        return forward(*args, **kwargs)

    def run(*args: Any) -> Any:  # noqa: ANN401
        # when it runs again, the forward pass that had set the attention is long over
        set_already = decoder.config._attn_implementation == NAME
        with nullcontext() if set_already else attending(decoder, kwargs.get("packed")):
            return forward(*args, **kwargs)

    return checkpoint(run, *args, use_reentrant=False)
