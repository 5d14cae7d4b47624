"""Finds prompts that say again what an earlier one has said."""

import math
from collections import Counter
from itertools import chain

from synthalign.prompts.form import words
from synthalign.types import Drop

SHINGLE = 3  # words

Run = tuple[str, ...]

THRESHOLD = 0.4
"""Share of runs of three words in common (Jaccard) from which a prompt repeats another one.

Of twenty words two may be others and it still counts as a repeat; with three apart from one another it does not.
"""


class Repeats:
    """The prompts kept so far, by their runs of three words.

    Exact, and quick even where all prompts have a phrase in common: one that shares the threshold's part of n runs
    shares at least one of any ``n - threshold * n + 1`` of them, so only prompts with one of the rarest are looked at.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._runs: list[set[Run]] = []  # by prompt
        self._index: dict[Run, list[int]] = {}  # prompts by run
        self._whole: dict[tuple[str, ...], str] = {}

    def find(self, prompt: str) -> Drop | None:
        """Say which earlier prompt this one repeats most, or None."""
        said = words(prompt)
        if (same := self._whole.get(tuple(said))) is not None:
            return Drop("duplicate", same)
        runs = _runs(said)
        rarest = sorted(runs, key=lambda run: len(self._index.get(run, ())))
        rarest = rarest[: len(runs) - math.ceil(THRESHOLD * len(runs)) + 1]
        # Two sets that have the threshold's share in common have this share of both their sizes in common.
        needed, left = THRESHOLD / (1 + THRESHOLD), len(runs) - len(rarest)
        shared = Counter(chain.from_iterable(self._index.get(run, ()) for run in rarest))
        near = [
            number
            for number, count in shared.items()
            if count + left >= needed * (len(runs) + len(self._runs[number])) - 1e-6
        ]
        shares = [(len(runs & self._runs[number]) / len(runs | self._runs[number]), -number) for number in near]
        share, nearest = max(shares, default=(0.0, 0))
        return None if share < THRESHOLD else Drop("near_duplicate", f"{self._ids[-nearest]}, {share:.2f} in common")

    def add(self, prompt_id: str, prompt: str) -> None:
        """Keep a prompt."""
        said = words(prompt)
        runs = _runs(said)
        for run in runs:
            self._index.setdefault(run, []).append(len(self._ids))
        self._whole[tuple(said)] = prompt_id
        self._ids.append(prompt_id)
        self._runs.append(runs)


def _runs(said: list[str]) -> set[Run]:
    return {tuple(said[start : start + SHINGLE]) for start in range(max(1, len(said) - SHINGLE + 1))}
