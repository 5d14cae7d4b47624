"""Pairs of token lists without images, scored by a policy's own forward; and a preparation that other processes run."""

import multiprocessing
import os
import random
import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from synthalign.dpo.policy import load_policy
from synthalign.dpo.reference import Cached
from synthalign.dpo.reference_cache import Preparation
from synthalign.types import PairLogps

# Forked from a process that has imported everything: a second each, not ten.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        "dpo.spoken_pairs",
        "transformers.models.auto.modeling_auto",
        "transformers.models.clip.modeling_clip",
        "transformers.models.llama.modeling_llama",
        "transformers.models.llava.modeling_llava",
    ]
)


class Spoken(NamedTuple):
    id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def fingerprint(self) -> str:
        return str(self[1:])


class SpokenBatch(NamedTuple):
    ids: list[str]
    pairs: list[Spoken]


def speak(number: int, seed: int = 0) -> list[Spoken]:
    """Pairs of random tokens and lengths."""
    noise = random.Random(seed)

    def words() -> list[int]:
        return [noise.randint(20, 120) for _ in range(noise.randint(2, 6))]

    return [Spoken(f"pair-{n}", words(), words(), words()) for n in range(number)]


def batch_of(pairs: Sequence[Spoken]) -> SpokenBatch:
    return SpokenBatch([pair.id for pair in pairs], list(pairs))


def score(network: Any, batch: SpokenBatch) -> PairLogps:
    """Sum the responses' log-probs, row by row."""
    sums = []
    for pair in batch.pairs:
        for response in (pair.chosen, pair.rejected):
            logits = network(input_ids=torch.tensor([pair.prompt + response])).logits[0, len(pair.prompt) - 1 : -1]
            sums.append(logits.log_softmax(-1)[range(len(response)), response].sum())
    counts = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in batch.pairs])
    return PairLogps(torch.stack(sums[0::2]), torch.stack(sums[1::2]), *counts.T)


def preparation(pairs: Sequence[Spoken], asked: list[str] | None = None, **settings: Any) -> Preparation:
    """Prepare these pairs, two a batch; ``asked`` collects the ids that are scored."""

    def batches(blocks: Sequence[Sequence[int]]) -> Any:
        for block in blocks:
            for start in range(0, len(block), 2):
                yield batch_of([pairs[place] for place in block[start : start + 2]])

    def counted(network: Any, batch: SpokenBatch) -> PairLogps:
        if asked is not None:
            asked.extend(batch.ids)
        return score(network, batch)

    plain: dict[str, Any] = {"recipe": {"dtype": "float32"}, "batches": batches, "score": counted}
    return Preparation(pairs=[(pair.id, pair.fingerprint) for pair in pairs], **{**plain, **settings})


def start_rank(
    model: Path, folder: Path, number: int, *, rank: int = 0, world_size: int = 1, dies_after: int | None = None
) -> BaseProcess:
    """Prepare so many pairs in another process, which writes the ids it scored to ``folder``/asked-<rank>.txt."""
    process = _forks.Process(target=_prepare, args=(model, folder, number, rank, world_size, dies_after))
    process.start()
    return process


def _prepare(model: Path, folder: Path, number: int, rank: int, world_size: int, dies_after: int | None) -> None:
    torch.set_num_threads(1)
    network = load_policy(str(model), dtype="float32")
    done: list[str] = []

    def logged(network: Any, batch: SpokenBatch) -> PairLogps:
        if dies_after is not None and len(done) >= dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        done.extend(batch.ids)
        with (folder / f"asked-{rank}.txt").open("a") as file:
            file.write("".join(f"{pair_id}\n" for pair_id in batch.ids))
        return score(network, batch)

    task = preparation(speak(number), score=logged, rank=rank, world_size=world_size)
    Cached(folder=str(folder / "cache"), shard_size=4).prepare(network, lambda: task)
