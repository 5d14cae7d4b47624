"""Tokens are drawn with the model's probabilities, by noise that is a row's own."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from synthalign.vlm import KeyedSampler, YesMargin, keyed_uniform


def splitmix(value: int) -> int:
    """SplitMix64's finaliser, on Python's integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)


def test_uniform_numbers_are_splitmix64_of_seed_and_step():
    seeds = [0, 1, 2, 2**63 - 1, 2**64 - 1, 123456789]
    for step in (0, 1, 7, 1000):
        expected = [
            (splitmix((splitmix(seed) + (step + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for seed in seeds
        ]
        assert keyed_uniform(np.array(seeds, dtype=np.uint64), step).tolist() == expected


def test_splitmix64_is_the_published_one():
    """The first outputs for seed 1234567 that the reference implementation (prng.di.unimi.it) prints."""
    states = [(1234567 + (n + 1) * 0x9E3779B97F4A7C15) % 2**64 for n in range(3)]
    assert [splitmix(state) for state in states] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_numbers_are_uniform_and_independent_over_steps_and_seeds():
    draws = np.stack([keyed_uniform(np.arange(2000, dtype=np.uint64), step) for step in range(20)])
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=50, range=(0, 1))[0]
    expected = draws.size / 50
    assert ((counts - expected) ** 2 / expected).sum() < 49 + 4 * (2 * 49) ** 0.5  # chi-square, 4 sigma
    bound = 4 / draws[1:].size ** 0.5
    for first, second in ((draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1]), (draws[5:], draws[:-5])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < bound
    assert len(np.unique(draws)) == draws.size


def draw(logits: torch.Tensor, n: int, **settings: Any) -> Counter[int]:
    """Draw n tokens from one row of logits, each with its own seed."""
    sampler = KeyedSampler(range(n), **settings)
    ruled = sampler(torch.zeros(n, 1, dtype=torch.long), logits.expand(n, -1).clone())
    assert (torch.isfinite(ruled).sum(-1) == 1).all()
    return Counter(ruled.argmax(-1).tolist())


def reference(logits: torch.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    """Sampling probabilities in plain Python."""
    weights = {token: 2.718281828459045 ** (value / temperature) for token, value in enumerate(logits.tolist())}
    ranked = sorted(weights, key=lambda token: -weights[token])
    if top_k:
        ranked = ranked[:top_k]
    total = sum(weights[token] for token in ranked)
    kept, reached = [], 0.0
    for token in ranked:
        if reached < top_p:
            kept.append(token)
        reached += weights[token] / total
    mass = sum(weights[token] for token in kept)
    return [weights[token] / mass if token in kept else 0.0 for token in range(len(logits))]


LOGITS = torch.tensor([1.0, -0.5, 2.0, 0.0, -3.0, 1.5, 0.3, -1.0])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.7},
        {"top_p": 0.01},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
    ],
)
def test_tokens_are_drawn_with_the_probabilities_of_the_softmax(settings):
    n = 20_000
    counts, expected = draw(LOGITS, n, **settings), reference(LOGITS, **settings)
    assert all(expected[token] > 0 for token in counts)
    possible = [token for token, p in enumerate(expected) if p > 0]
    chi = sum((counts[token] - n * expected[token]) ** 2 / (n * expected[token]) for token in possible)
    freedom = len(possible) - 1
    assert chi <= freedom + 4 * (2 * freedom) ** 0.5


def test_a_low_temperature_is_greedy_and_impossible_tokens_are_never_drawn():
    assert set(draw(LOGITS, 1000, temperature=0.01)) == {2}
    masked = LOGITS.clone()
    masked[[0, 2, 7]] = -torch.inf
    assert set(draw(masked, 5000)) <= {1, 3, 4, 5, 6}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [{}, {"top_k": 5, "top_p": 0.5}])
def test_logits_that_are_no_numbers_are_one_line(bad, settings):
    scores = torch.zeros(2, 300)
    scores[1, 7] = bad
    with pytest.raises(FloatingPointError, match="logits are no finite numbers: take bfloat16 or float32"):
        KeyedSampler([1, 2], **settings).draw(scores)


def test_a_draw_depends_on_seed_and_step_and_not_on_the_row():
    sampler, ids = KeyedSampler([5, 6, 5, 7]), torch.zeros(4, 1, dtype=torch.long)
    flat = torch.zeros(4, 10_000)
    first, second = (sampler(ids, flat).argmax(-1).tolist() for _ in range(2))
    assert first[0] == first[2] and second[0] == second[2]
    assert len({*first, *second}) == 6
    alone = KeyedSampler([6])
    assert [alone(ids[:1], flat[:1]).argmax().item() for _ in range(2)] == [first[1], second[1]]
    again = sampler.rows([3, 1])
    assert again(ids[:2], flat[:2]).argmax(-1).tolist() == [first[3], first[1]]


def test_yes_margin_is_noted_once_and_changes_nothing():
    noting = YesMargin([1, 2], [3])
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    assert torch.equal(noting(torch.zeros(2, 1), scores), scores)
    noting(torch.zeros(2, 1), scores * 9)
    e = 2.718281828459045
    expected = [np.log(e**1 + e**2) - 3, np.log(2 * e) - 1]
    assert noting.margins == pytest.approx(expected, abs=1e-6)
