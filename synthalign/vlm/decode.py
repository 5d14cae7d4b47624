"""Replies, token by token, of rows that share the beginning of their prompts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from synthalign.vlm.branches import Started, forward
from synthalign.vlm.plain import Said, said

KEEP = 0.75
"""Rows that have ended leave the batch when no more than this share of it goes on: copying what it holds costs time."""


def decode(
    network: Any,  # noqa: ANN401
    started: Started,
    choose: Callable[[Tensor, Sequence[int]], Tensor],
    stops: set[int],
    *,
    max_new_tokens: int,
) -> Said:
    """Let N rows say on.

    Args:
        network: The model.
        started: Their prompts, read.
        choose: Chooses the next tokens (n,) of n of the rows from their logits (n, V); the others have ended.
        stops: Tokens that end a reply.
        max_new_tokens: Length limit of a reply, tokens.
    """
    cache, logits, positions = started
    rows = list(range(len(logits)))
    spoken: list[list[int]] = [[] for _ in rows]
    going = set(rows)
    for step in range(max_new_tokens):
        tokens = choose(logits, rows)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            spoken[row].append(token)
            if token in stops:
                going.discard(row)
        if not going or step == max_new_tokens - 1:
            break
        if len(going) <= KEEP * len(rows):
            places = [place for place, row in enumerate(rows) if row in going]
            rows = [rows[place] for place in places]
            at = torch.tensor(places, device=tokens.device)
            cache, tokens, positions = cache.take(places), tokens[at], positions[:, at]
        present = torch.ones(len(rows), 1, dtype=torch.bool)
        logits = forward(network, cache, tokens[:, None], positions[:, :, None], present)
        positions = positions + 1
    return said(spoken, list(stops))
