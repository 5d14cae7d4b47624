"""All that answer the scene: compared with the plain forward, then timed in turn."""

import ctypes
import gc
import sys
import time
from functools import partial
from typing import Any, NamedTuple

from ladder.measure import Spread, ratios, seconds, spread  # type: ignore[import-not-found]

from synthalign.vlm import KeyedSampler, reply

from . import check, floor, peers
from .check import Answer
from .scene import Scene

LOOP, COPIED, OURS = "one at a time", "prefix once, cache copied", "ours"

BATCH_SIZE = 48
"""Rows that we answer at once: those that the copied cache is copied to."""

BARS = {LOOP: 8.0, COPIED: 2.2}
"""How many times faster than these we are to be."""

LOGITS = {"fp32": 1e-3, "bf16": 0.3}
"""How far a logit of the first token may be from the plain forward's, in standard deviations of its row.

In fp32 the last token's too, and all words must be the same; in bf16 two likely words change places at times, and what
follows is another answer.
"""

MOST_SURPRISE, LEAST_P = 4.0, 1e-4


def ours(scene: Scene, *, greedy: bool = False) -> list[str]:
    """Answer as a responder does: rows one behind the other, one seed each."""
    answers = reply(
        scene.network,
        scene.chat,
        scene.images,
        scene.questions,
        max_new_tokens=scene.new_tokens,
        batch_size=BATCH_SIZE,
        sampler=None if greedy else KeyedSampler(scene.seeds),
    )
    return [answer.text for answer in answers]


CONTENDERS: dict[str, Answer] = {
    LOOP: peers.one_at_a_time,
    "num_return_sequences": peers.several_at_once,
    "batched over questions": peers.all_at_once,
    COPIED: peers.prefix_copied,
    "the same, our sampler": partial(peers.prefix_copied, keyed=True),
    OURS: ours,
}


def keep_memory() -> None:
    """Make the C library keep freed memory on the CPU, as PyTorch does on CUDA.

    Otherwise large tensors come from the kernel anew each time, which writes zeros into them first: contenders that
    copy large caches would be slower by half, for no reason of their own.
    """
    library = ctypes.CDLL("libc.so.6")
    no_mappings, no_trimming = library.mallopt(-4, 0), library.mallopt(-1, 2**31 - 1)  # M_MMAP_MAX, M_TRIM_THRESHOLD
    if not (no_mappings and no_trimming):
        raise RuntimeError("this C library does not take mallopt's settings")


def compare(scene: Scene, dtype: str) -> dict[str, dict[str, Any]]:
    """Compare every contender's greedy answers with the plain forward.

    Raises:
        RuntimeError: One answers something else.
    """
    expected = check.plain(scene, peers.one_at_a_time)
    return {
        name: compared(name, scene, answer, expected, dtype)
        for name, answer in CONTENDERS.items()
        if name != "the same, our sampler"  # greedily the same to the letter
    }


def compared(name: str, scene: Scene, answer: Answer, expected: check.Plain, dtype: str) -> dict[str, Any]:
    """Compare one's greedy answers with the plain forward.

    Raises:
        RuntimeError: They are others.
    """
    found = check.greedy(scene, answer, expected)
    exact = dtype != "fp32" or (found.words == 1.0 and found.last <= LOGITS[dtype])
    if not (found.first <= LOGITS[dtype] and exact):
        raise RuntimeError(f"{name}, {dtype}: greedily it answers something else than the plain forward: {found}")
    print(f"greedily, {name}: {found}", file=sys.stderr, flush=True)
    return found._asdict()


def times(scene: Scene, dtype: str, num_rounds: int, loop_step: int) -> dict[str, Any]:
    """Time every contender in turn, test what it drew, and count the floor.

    Args:
        scene: What is asked.
        dtype: Of the weights.
        num_rounds: In which each contender is timed once.
        loop_step: One row at a time, only every so manyeth is answered, and the time scaled.

    Raises:
        RuntimeError: Samples are drawn from something else than the model's distribution.
    """
    scenes = dict.fromkeys(CONTENDERS, scene) | {LOOP: scene.of(slice(None, None, loop_step))}
    taken, texts, rates = take_turns(scene, CONTENDERS, scenes, dtype, num_rounds)
    surprises = {name: drawn(name, scenes[name], texts[name]) for name in CONTENDERS}
    # Medians, not the best: what else the machine does slows an answer as well.
    best, step = (spread([one[place] for one in rates]).median for place in (0, 1))
    needed, whole = floor.floor(scene), floor.floor(scene, whole=True)
    sized = (needed.images + needed.prompts) / best + needed.answers / step
    rows = [
        {
            "name": name,
            "seconds": spread(one),
            "rounds": one,
            "against": {of: ratios(taken[of], one) for of in BARS},
            "above_floor": spread(one).median * best / needed.total,
            "above_sized": spread(one).median / sized,
            "surprise": surprises[name],
        }
        for name, one in taken.items()
    ]
    return {
        "rows": rows,
        "best": best,
        "step": step,
        "rates": rates,
        "floor": needed._asdict(),
        "whole": whole._asdict(),
    }


class Turns(NamedTuple):
    """What the contenders took and gave."""

    taken: dict[str, list[float]]  # s, of all rows, round by round
    texts: dict[str, list[str]]  # in the last round
    rates: list[floor.Rates]  # in each round


def take_turns(
    scene: Scene, contenders: dict[str, Answer], scenes: dict[str, Scene], dtype: str, num_rounds: int
) -> Turns:
    """Time contenders in turn, each on its own scene; where that is fewer rows, the time is scaled."""
    device = scene.network.device
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    texts: dict[str, list[str]] = {}
    rates: list[floor.Rates] = []
    for done in range(num_rounds):
        for name, answer in contenders.items():
            gc.collect()  # what another left is not this one's to sweep
            one = partial(_keep, texts, name, answer, scenes[name])
            scale = len(scene.questions) / len(scenes[name].questions)
            taken[name].append(scale * seconds(one, device))
        rates.append(floor.rates(scene))
        said = ", ".join(f"{name} {one[-1]:.3f}" for name, one in taken.items())
        print(f"{dtype}, round {done + 1} of {num_rounds}: {said}", file=sys.stderr, flush=True)
    return Turns(taken, texts, rates)


def drawn(name: str, scene: Scene, texts: list[str]) -> float:
    """Return how surprising answers are, as a z-score.

    Raises:
        RuntimeError: Too much or too little, or two samples are one.
    """
    if len(set(texts)) < len(scene.questions):
        raise RuntimeError(f"{name}: of {len(scene.questions)} samples {len(set(texts))} are distinct")
    score = check.surprise(scene, texts)
    if not abs(score) <= MOST_SURPRISE:
        raise RuntimeError(f"{name}: its samples are not drawn from the model's distribution, z = {score:.1f}")
    return score


def first_words(scene: Scene, num_draws: int) -> tuple[float, float]:
    """Return the p-values of our first words.

    Raises:
        RuntimeError: One is too low.
    """
    started = time.process_time()
    found = check.first_words(scene, num_draws)
    print(f"{num_draws} first words: {found}, {time.process_time() - started:.1f} s", file=sys.stderr, flush=True)
    if min(found) < LEAST_P:
        raise RuntimeError(f"our first words are not drawn from the model's distribution: p = {found}")
    return found


def verdict(rows: list[dict[str, Any]]) -> str:
    """Say how we stand beside the bars, in one line."""
    row = next(row for row in rows if row["name"] == OURS)
    said = []
    for of, bar in BARS.items():
        ratio: Spread = row["against"][of]
        said.append(f"{ratio.median:.2f} x {of!r} (bar {bar:g}: {'holds' if ratio.median >= bar else 'missed'})")
    return f"ours: {', '.join(said)}; {row['above_floor']:.2f} times the floor"


def _keep(texts: dict[str, list[str]], name: str, answer: Answer, scene: Scene) -> None:
    texts[name] = answer(scene)
