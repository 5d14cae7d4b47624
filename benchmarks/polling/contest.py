"""All that answer the poll: compared with the plain forward, then timed in turn."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from generation import check, contest, floor  # type: ignore[import-not-found]
from generation.scene import Asked, Scene  # type: ignore[import-not-found]
from ladder.measure import Spread, ratios, spread  # type: ignore[import-not-found]

from synthalign.vlm import KeptFeatures, reply

from . import peers

LOOP, COPIED = contest.LOOP, contest.COPIED
OURS, APART, KEPT = "ours", "ours, a split at a time", "ours, kept features"
FIRST, FIRST_KEPT = "ours, first token", "ours, first token, kept features"

SPLITS = 3
"""POPE asks six questions about an image in each of three splits."""

ASKED = {
    "tiny": Asked(num_questions=6, num_samples=1, new_tokens=3, image_size=64, system_words=5, question_words=(6, 9)),
    "small": Asked(num_questions=18, num_samples=1, new_tokens=3, question_words=(6, 9)),
    "llava-1.5-7b": Asked(num_questions=18, num_samples=1, new_tokens=3, question_words=(6, 9)),
}
"""By the name of a size of `ladder.scene`, whose model it is."""

APART_BY = 0.1
"""Standard deviations that the logits of any two questions differ by: of 36 short ones some are alike."""

BARS: dict[str, dict[str, float]] = {
    OURS: {LOOP: 10.0, COPIED: 1.2},
    FIRST: {LOOP: 11.0},
    KEPT: {LOOP: 14.0},
    FIRST_KEPT: {LOOP: 14.0},
}
"""How many times faster than these we are to be."""


class Contender(NamedTuple):
    """One way to answer."""

    answer: Callable[..., list[str]]
    first_only: bool = False
    encodes: bool = True  # each image, whenever it answers


def contenders() -> dict[str, Contender]:
    """Return all of them; those that keep features have seen the images once they have been compared."""
    kept = KeptFeatures(limit_gib=8)
    return {
        LOOP: Contender(peers.one_at_a_time),
        f"batches of {peers.ROWS}, padded": Contender(peers.padded),
        "the loop, features once": Contender(peers.features_once),
        "the loop, prefix's cache copied": Contender(peers.cache_for_each),
        COPIED: Contender(peers.prefix_copied),
        OURS: Contender(ours),
        APART: Contender(a_split_at_a_time),
        KEPT: Contender(partial(ours, kept=kept), encodes=False),
        FIRST: Contender(ours, first_only=True),
        FIRST_KEPT: Contender(partial(ours, kept=kept), first_only=True, encodes=False),
    }


def ours(scene: Scene, *, greedy: bool = True, kept: KeptFeatures | None = None) -> list[str]:
    """Answer as the module in training does, all questions about an image together."""
    answers = reply(
        scene.network,
        scene.chat,
        scene.images,
        scene.questions,
        max_new_tokens=scene.new_tokens,
        batch_size=contest.BATCH_SIZE,
        kept=kept,
    )
    return [answer.text for answer in answers]


def a_split_at_a_time(scene: Scene, *, greedy: bool = True) -> list[str]:
    """Answer as who evaluates split after split: of every image a third of the questions, then the next."""
    texts: dict[int, str] = {}
    for split in range(SPLITS):
        rows = range(split, len(scene.questions), SPLITS)
        texts |= dict(zip(rows, ours(scene.of(slice(split, None, SPLITS))), strict=True))
    return [texts[row] for row in range(len(scene.questions))]


def compare(scene: Scene, dtype: str, all_of_them: dict[str, Contender]) -> dict[str, dict[str, Any]]:
    """Compare every contender's answers with the plain forward.

    Raises:
        RuntimeError: One answers something else.
    """
    expected = check.plain(scene, peers.one_at_a_time, apart=APART_BY)
    first = first_tokens(expected)
    found = {}
    for name, one in all_of_them.items():
        asked = replace(scene, new_tokens=1) if one.first_only else scene
        found[name] = contest.compared(name, asked, one.answer, first if one.first_only else expected, dtype)
    return found


def first_tokens(expected: check.Plain) -> check.Plain:
    """Cut plain answers behind their first token."""
    first, _ = expected.logits.chunk(2)
    return check.Plain([text.split()[0] for text in expected.texts], torch.cat([first, first]))


def times(scene: Scene, dtype: str, num_rounds: int, loop_step: int, all_of_them: dict[str, Contender]) -> Any:  # noqa: ANN401
    """Time every contender in turn, and count its floor.

    Args:
        scene: What is asked.
        dtype: Of the weights.
        num_rounds: In which each contender is timed once.
        loop_step: One at a time, only one question in so many is answered, and the time scaled.
        all_of_them: By name; compared before.
    """
    whole, short = scene, replace(scene, new_tokens=1)
    scenes = {name: short if one.first_only else whole for name, one in all_of_them.items()}
    scenes[LOOP] = whole.of(slice(None, None, loop_step))
    answers = {name: one.answer for name, one in all_of_them.items()}
    taken, _, rates = contest.take_turns(scene, answers, scenes, dtype, num_rounds)
    # Medians, not the best: what else the machine does slows an answer as well.
    best, step = (spread([one[place] for one in rates]).median for place in (0, 1))
    rows = []
    for name, one in all_of_them.items():
        needed = needs(short if one.first_only else whole, encodes=one.encodes)
        sized = (needed.images + needed.prompts) / best + needed.answers / step
        median = spread(taken[name]).median
        rows.append(
            {
                "name": name,
                "seconds": spread(taken[name]),
                "rounds": taken[name],
                "against": {of: ratios(taken[of], taken[name]) for of in (LOOP, COPIED, APART)},
                "above_floor": median * best / needed.total,
                "above_sized": median / sized,
            }
        )
    floors = {"floor": floor.floor(scene)._asdict(), "whole": floor.floor(scene, whole=True)._asdict()}
    return {"rows": rows, "best": best, "step": step, "rates": rates} | floors


def needs(scene: Scene, *, encodes: bool) -> floor.Floor:
    """Count the operations that answers cannot do without; where features are kept, not those of images."""
    needed = floor.floor(scene)
    return needed if encodes else needed._replace(images=0.0)


def verdict(rows: list[dict[str, Any]]) -> str:
    """Say how we stand beside the bars, a line for each of ours."""
    by_name = {row["name"]: row for row in rows}
    lines = []
    for name, bars in BARS.items():
        said = []
        for of, bar in bars.items():
            ratio: Spread = by_name[name]["against"][of]
            said.append(f"{ratio.median:.2f} x {of!r} (bar {bar:g}: {'holds' if ratio.median >= bar else 'missed'})")
        lines.append(f"{name}: {', '.join(said)}; {by_name[name]['above_floor']:.2f} times the floor")
    merged: Spread = by_name[OURS]["against"][APART]
    return "\n".join([*lines, f"three splits at once: {merged.median:.2f} x one after another"])
