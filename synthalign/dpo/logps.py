"""Log-probabilities of responses, without ever keeping all logits.

B rows, S tokens of the longest, N scored tokens of all rows, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from synthalign.dpo.batch import PreferenceBatch, Rows
from synthalign.types import PairLogps

CHUNK_TOKENS = 256
"""Rows of logits that exist at a time: 256 of LLaVA's 32064 words take 31 MiB in fp32."""


def pair_logps(model: Any, batch: PreferenceBatch) -> PairLogps:  # noqa: ANN401 - any Hugging Face model
    """Score both responses of B pairs under a vision-language model.

    Args:
        model: The model, PEFT's wrapper included.
        batch: The pairs, on the model's device.

    Returns:
        Sums of log-probs over response tokens (B,), nats, at least fp32; and the tokens' counts (B,).
    """
    chosen, chosen_tokens = sequence_logps(model, batch.images, batch.chosen)
    rejected, rejected_tokens = sequence_logps(model, batch.images, batch.rejected)
    return PairLogps(chosen, rejected, chosen_tokens, rejected_tokens)


def sequence_logps(model: Any, images: dict[str, Tensor], rows: Rows) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Sum the log-probs of each row's response; return the sums (B,) and the numbers of tokens (B,)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    images = {key: value.to(head.weight.dtype) if value.is_floating_point() else value for key, value in images.items()}
    hidden = base.model(**rows.inputs, **images, use_cache=False).last_hidden_state
    # The one place where labels shift: the state at position s - 1 predicts the token at position s.
    scored = rows.response_mask[:, 1:]
    logps = token_logps(hidden[:, :-1][scored], head, rows.inputs["input_ids"][:, 1:][scored], _softcap(base))
    row = scored.nonzero()[:, 0]
    sums = torch.zeros(len(scored), dtype=logps.dtype, device=logps.device).index_add(0, row, logps)
    return sums, scored.sum(1)


def token_logps(
    hidden: Tensor,
    head: torch.nn.Module,
    targets: Tensor,
    softcap: float | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Tensor:
    """Return log softmax(head(hidden))[targets] for N tokens, shape (N,), in at least fp32.

    Logits exist for ``chunk_tokens`` tokens at a time and are computed again in the backward pass.

    Args:
        hidden: Final hidden states (N, D).
        head: The output embedding, D to V.
        targets: Token ids (N,).
        softcap: Bound of the logits, where a model squashes them by softcap * tanh(logits / softcap).
        chunk_tokens: Rows of logits that exist at a time.
    """

    def score(states: Tensor, ids: Tensor) -> Tensor:
        logits = head(states)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return -cross_entropy(logits, ids, reduction="none")

    parts = zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(score, states, ids, use_reentrant=False) for states, ids in parts])
    return torch.cat([score(states, ids) for states, ids in parts])


def _softcap(base: Any) -> float | None:  # noqa: ANN401
    """Return the model's bound of its logits, if it has one; refuse what would be scored wrongly."""
    config = base.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or getattr(config, "logits_scaling", None) or 1.0
    if scale != 1.0:
        raise ValueError(f"{type(base).__name__} scales its logits by {scale}, which is not supported")
    return getattr(config, "final_logit_softcapping", None)
