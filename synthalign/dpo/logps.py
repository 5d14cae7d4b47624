"""Log-probabilities of responses under a vision-language model, whatever the layout.

B pairs, N scored tokens, D width.
"""

from typing import Any

import torch
from torch import Tensor

from synthalign.dpo.attention import attending
from synthalign.dpo.families import softcap_of
from synthalign.dpo.features import Features
from synthalign.dpo.head import token_logps
from synthalign.dpo.layouts import Laid
from synthalign.types import PairLogps
from synthalign.vlm.families import base_of, decoder_of


def pair_logps(network: Any, laid: Laid, features: Features) -> PairLogps:  # noqa: ANN401
    """Score both responses of B pairs.

    Args:
        network: The model, PEFT's wrapper included.
        laid: The pairs as they lie before it.
        features: Their images, encoded.

    Returns:
        Sums of log-probs over response tokens (B,), nats, at least fp32; and the tokens' counts (B,).
    """
    sums = [part.sum() for part in scored_logps(network, laid, features).split(laid.lengths)]
    counts = torch.tensor(laid.lengths, device=sums[0].device)
    # stacked apart: of two views of one tensor, FSDP2 warns
    return PairLogps(torch.stack(sums[0::2]), torch.stack(sums[1::2]), counts[0::2], counts[1::2])


def scored_logps(network: Any, laid: Laid, features: Features) -> Tensor:  # noqa: ANN401
    """Return the log-prob of every scored token, (N,), sequence by sequence."""
    base = base_of(network)
    with attending(decoder_of(network), laid.packed) as besides:
        inputs = {**laid.inputs, **features.inputs(laid.image_order), **besides}
        hidden = base.model(**inputs, use_cache=False).last_hidden_state
    return token_logps(hidden.flatten(0, 1)[laid.scored], base.get_output_embeddings(), laid.targets, softcap_of(base))
