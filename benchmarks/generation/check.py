"""What must hold before a time means anything: the same words and logits greedily, the right distribution sampled.

V words, T tokens of an answer. Everything is compared with the plain forward: one prompt, one image and a given answer
in one pass, without a cache. A logit's distance is counted in standard deviations of its row.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthalign.vlm import KeyedSampler, reply

from .scene import Scene

Answer = Callable[..., list[str]]
"""Answers the rows of a scene, greedily with `greedy=True`."""


class Plain(NamedTuple):
    """Greedy answers to every question, and what the plain forward makes of them."""

    texts: list[str]  # Q
    logits: Tensor  # (2 Q, V): of the first token of each answer, then of the last one of each


class Greedy(NamedTuple):
    """How far greedy answers are from the plain ones."""

    words: float  # share of the words that are the same
    first: float  # largest distance of a logit of the first token
    last: float  # and of the last, of answers that are the same; nan where there are none


@torch.no_grad()
def forced(scene: Scene, text: str) -> Tensor:
    """Return the logits (T, V) of an answer to the first row of a scene, fp32."""
    once = scene.of(slice(0, 1))
    inputs, said = once.inputs(), scene.tokens_of(text)
    ids = torch.cat(
        [inputs.pop("input_ids"), torch.tensor([said[:-1]], dtype=torch.long, device=scene.network.device)], 1
    )
    inputs["attention_mask"] = torch.ones_like(ids)
    return scene.network(input_ids=ids, **inputs, use_cache=False, logits_to_keep=len(said)).logits[0].float()


def plain(scene: Scene, answer: Answer, *, apart: float = 0.5) -> Plain:
    """Run the plain forward over greedy answers.

    Args:
        scene: What is asked.
        answer: Gives those answers.
        apart: Standard deviations that the logits of any two questions must differ by.

    Raises:
        RuntimeError: They hardly depend on what is asked, so that comparing says nothing.
    """
    once = scene.asked_once
    texts = answer(once, greedy=True)
    logits = [forced(once.of(slice(row, row + 1)), text) for row, text in enumerate(texts)]
    found = torch.cat([torch.stack([one[place] for one in logits]) for place in (0, -1)])
    for name, rows in zip(("first", "last"), found.chunk(2), strict=True):
        nearest = min(distances(rows[:row], one).min().item() for row, one in enumerate(rows) if row)
        if nearest < apart:
            raise RuntimeError(
                f"the {name} logits of two questions are {nearest:.3f} apart: prompts hardly matter here"
            )
    return Plain(texts, found)


def greedy(scene: Scene, answer: Answer, expected: Plain) -> Greedy:
    """Compare greedy answers and their logits with the plain ones.

    Logits are looked for among all that the model's head gives meanwhile, in whatever order and batch.
    """
    near = Nearest(expected.logits)
    hook = scene.network.get_output_embeddings().register_forward_hook(near)
    try:
        texts = answer(scene, greedy=True)
    finally:
        hook.remove()
    wanted = [text for text in expected.texts for _ in range(scene.num_samples)]
    words = [
        one == other
        for text, want in zip(texts, wanted, strict=True)
        for one, other in zip(scene.tokens_of(text), scene.tokens_of(want), strict=True)
    ]
    first, last = near.distance.chunk(2)
    same = [texts[row * scene.num_samples] == text for row, text in enumerate(expected.texts)]
    of_same = [distance for distance, alike in zip(last.tolist(), same, strict=True) if alike]
    return Greedy(sum(words) / len(words), first.max().item(), max(of_same, default=math.nan))


class Nearest:
    """A hook of a model's head that notes how near its logits come to given ones.

    Args:
        expected: (n, V).
    """

    def __init__(self, expected: Tensor) -> None:
        self.expected = expected
        self.distance = torch.full((len(expected),), math.inf)

    def __call__(self, head: Any, inputs: Any, output: Tensor) -> None:  # noqa: ANN401
        """Look at logits (..., V)."""
        rows = output.flatten(0, -2).float()
        found = torch.stack([distances(rows, one).min() for one in self.expected])
        self.distance = torch.minimum(self.distance, found.cpu())


def distances(rows: Tensor, one: Tensor) -> Tensor:
    """Return how far each row (n, V) of logits is from one (V), in standard deviations."""
    return (rows - one).abs().amax(-1) / one.std()


def surprise(scene: Scene, texts: list[str]) -> float:
    """Test sampled answers, every token of some: about N(0, 1) where they are drawn as they should be.

    At each step the surprise, minus the log-probability of the token drawn, is on average the entropy of the
    distribution, whatever came before; so the sum of what it is above that, by its own deviation, is a z-score.
    """
    above, variance = 0.0, 0.0
    for row in range(0, len(texts), scene.num_samples + 1):  # of most questions one, each time another sample
        logps = forced(scene.of(slice(row, row + 1)), texts[row]).double().log_softmax(-1)
        drawn = logps.gather(-1, torch.tensor(scene.tokens_of(texts[row]), device=logps.device)[:, None])
        mean = (logps.exp() * logps).sum(-1)
        above += (mean - drawn[:, 0]).sum().item()
        variance += ((logps.exp() * logps.square()).sum(-1) - mean.square()).sum().item()
    return above / variance**0.5


def first_words(scene: Scene, num_draws: int, *, temperature: float = 1.0) -> tuple[float, float]:
    """Test the first words of many answers to one question with a chi-square, and return two p-values.

    Words fall into bins that are about equally likely: in the order of their likelihood, which shows words that are
    ruled out or favoured, and in their own, along which the sampler draws.
    """
    once = scene.of(slice(0, 1))
    answers = reply(
        scene.network,
        scene.chat,
        [*once.images] * num_draws,
        [*once.questions] * num_draws,
        max_new_tokens=1,
        batch_size=128,
        sampler=KeyedSampler(range(num_draws), temperature=temperature),
    )
    single = replace(once, new_tokens=1)
    drawn = torch.tensor([single.tokens_of(answer.text)[0] for answer in answers])
    probs = forced(single, answers[0].text)[0].double().softmax(-1).cpu()
    ordered = probs.argsort(descending=True)
    return chi_square(drawn, probs, ordered), chi_square(drawn, probs, torch.arange(len(probs)))


def chi_square(drawn: Tensor, probs: Tensor, order: Tensor) -> float:
    """Return the p-value of draws (n) from probabilities (V), binned along an order of the words."""
    num_bins = max(2, min(64, len(drawn) // 16))
    along = probs[order]
    bins = torch.empty_like(order)
    bins[order] = ((along.cumsum(-1) - along / 2) * num_bins).long().clamp(max=num_bins - 1)
    expected = len(drawn) * torch.zeros(num_bins, dtype=probs.dtype).index_add_(0, bins, probs)
    seen = torch.bincount(bins[drawn], minlength=num_bins)
    used = expected > 0  # a likely word fills several
    statistic = ((seen - expected)[used].square() / expected[used]).sum()
    return torch.special.gammaincc((used.sum() - 1) / 2, statistic / 2).item()
