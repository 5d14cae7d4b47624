"""What every training of the offline world shares: optimizer steps, texts as token ids, and the loss of answers.

Shapes: n rows of a batch, T tokens of its longest row, d width of the model.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthalign.world.models import PAD

IGNORED = -100


def run_course(
    title: str, parts: Sequence[nn.Module], steps: int, loss: Callable[[], Tensor], *, rate: float = 2e-3
) -> None:
    """Train what is trainable in ``parts``: AdamW, ``rate`` after a short warm-up, a cosine down to 5 % of it.

    Args:
        title: stands before the progress bar.
        parts: modules whose weights are trained, and left in eval mode.
        steps: optimizer steps; 0 trains nothing.
        loss: makes a fresh batch and returns its loss.
        rate: peak learning rate.
    """
    from tqdm import tqdm

    for part in parts:
        part.train()
    weights = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm_up) * (0.525 + 0.475 * math.cos(math.pi * step / max(1, steps))),
    )
    bar = tqdm(range(steps), desc=f"{title:28}", mininterval=1.0)
    for step in bar:
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{value.item():.3f}")
    for part in parts:
        part.eval()


class Encoder:
    """Encodes texts, each one only once.

    Args:
        tokenizer: the world's tokenizer; nothing is added to what a text says.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self.tokenizer = tokenizer
        self.known: dict[str, tuple[int, ...]] = {}

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text."""
        if text not in self.known:
            self.known[text] = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self.known[text]

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return right-padded ids, (n, T)."""
        return _pad([self.ids(text) for text in texts], PAD)

    def rows(self, rows: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        """Return ids and labels of (context, answer) rows, both (n, T); only the answers are labelled."""
        pairs = [(self.ids(context), self.ids(answer)) for context, answer in rows]
        ids = _pad([(*context, *answer) for context, answer in pairs], PAD)
        return ids, _pad([(*(IGNORED for _ in context), *answer) for context, answer in pairs], IGNORED)


def _pad(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *(filler for _ in range(longest - len(row)))] for row in rows])


def answer_loss(hidden: Tensor, labels: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted cross-entropy of labelled tokens, summed, and the sum of the weights.

    A row weighs by the square root of its length, not by its length, so that short answers count beside long ones.

    Args:
        hidden: last hidden states, (n, T, d).
        labels: (n, T).
        head: output embeddings, (vocabulary, d).
    """
    targets = labels[:, 1:]
    asked = targets != IGNORED
    weights = asked.sum(1, keepdim=True).float().rsqrt().expand(targets.shape)[asked]
    losses = F.cross_entropy(F.linear(hidden[:, :-1][asked], head), targets[asked], reduction="none")
    return (losses * weights).sum(), weights.sum()
