"""Writes the offline world's files: prompts to draw, and the evaluations' images, questions and truths.

Test scenes come from seeds of their own, so they are the same whatever the seed of the prompts; those of ``heldout``
are for the figures that are reported, and nothing is tuned on them.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from synthalign.world import questions as q
from synthalign.world.language import describe
from synthalign.world.render import render
from synthalign.world.scenes import BIASED, HALF, OBJECTS, Scene, sample

VALIDATION_SCENES = 100
PER_LABEL = 3  # POPE's questions per image and label
MMHAL_TYPES = (
    "attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other",
)  # fmt: skip
MMHAL_ITEMS = {"validation": 96, "heldout": 192}


def write(
    out: Path, *, seed: int, num_prompts: int = 500, questions_per_prompt: int = 4, num_scenes: int = 400
) -> None:
    """Write the world's files under ``out``; the same arguments give the same bytes.

    Args:
        out: folder to write into, made if need be.
        seed: decides the prompts and their questions; the test scenes do not depend on it.
        num_prompts: rows of ``prompts.jsonl``.
        questions_per_prompt: questions of each prompt, all different.
        num_scenes: test scenes of ``heldout``; ``validation`` has 100.

    Raises:
        ValueError: if a number is below 1, or more questions are wanted than every scene has.
    """
    for name, number in (
        ("num_prompts", num_prompts),
        ("questions_per_prompt", questions_per_prompt),
        ("num_scenes", num_scenes),
    ):
        if number < 1:
            raise ValueError(f"{name} is {number}: it must be 1 or more")
    if questions_per_prompt > 20:
        raise ValueError(f"questions_per_prompt is {questions_per_prompt}: a scene has no more than 20 good questions")
    out.mkdir(parents=True, exist_ok=True)
    _write_lines(out / "prompts.jsonl", (_prompt(seed, nth + 1, questions_per_prompt) for nth in range(num_prompts)))
    (out / "objects.txt").write_text("".join(f"{kind}\n" for kind in OBJECTS), encoding="utf-8")
    for split, number in (("validation", VALIDATION_SCENES), ("heldout", num_scenes)):
        _write_split(out / split, split, split_scenes(split, number))


def split_scenes(split: str, number: int) -> list[Scene]:
    """Return the first test scenes of a split."""
    return [sample(Random(f"{split} scene {nth}"), HALF) for nth in range(number)]


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _prompt(seed: int, number: int, count: int) -> dict[str, Any]:
    rng = Random(f"prompt {seed} {number}")
    meant = sample(rng, HALF)
    asked: dict[str, None] = {}
    while len(asked) < count:
        asked[q.draw_question(meant, rng)] = None
    return {
        "id": f"{meant.theme}-{number:04d}",
        "category": meant.theme,
        "prompt": describe(meant),
        "questions": list(asked),
    }


def _write_split(folder: Path, split: str, scenes: Sequence[Scene]) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "pope").mkdir(exist_ok=True)
    names = [f"{split}-{nth + 1:04d}.png" for nth in range(len(scenes))]
    for nth, (name, scene) in enumerate(zip(names, scenes, strict=True)):
        render(scene, Random(f"{split} picture {nth}")).save(folder / "images" / name)
    for kind, rows in _pope(split, names, scenes).items():
        _write_lines(folder / "pope" / f"{kind}.json", rows)
    mmhal = [_mmhal(split, nth, names, scenes) for nth in range(MMHAL_ITEMS[split])]
    (folder / "mmhal.json").write_text(json.dumps(mmhal, indent=2) + "\n", encoding="utf-8")
    rng = Random(f"{split} captions")
    _write_lines(
        folder / "captions.jsonl",
        (
            {"id": Path(name).stem, "image": name, "question": rng.choice(q.DESCRIBE), "objects": sorted(scene.kinds)}
            for name, scene in zip(names, scenes, strict=True)
        ),
    )


def _pope(split: str, names: Sequence[str], scenes: Sequence[Scene]) -> dict[str, list[dict[str, Any]]]:
    frequency, together = _company()
    rows: dict[str, list[dict[str, Any]]] = {"random": [], "popular": [], "adversarial": []}
    for nth, (name, scene) in enumerate(zip(names, scenes, strict=True)):
        rng = Random(f"{split} pope {nth}")
        present = rng.sample(sorted(scene.kinds), min(PER_LABEL, len(scene.kinds)))
        absent = [kind for kind in OBJECTS if kind not in scene.kinds]
        company = {kind: sum(together[other, kind] / frequency[other] for other in scene.kinds) for kind in absent}
        negatives = {
            "random": rng.sample(absent, len(present)),
            "popular": sorted(absent, key=lambda kind: -frequency[kind])[: len(present)],
            "adversarial": sorted(absent, key=lambda kind: -company[kind])[: len(present)],
        }
        for kind, split_rows in rows.items():
            for yes, no in zip(present, negatives[kind], strict=True):
                for asked, label in ((yes, "yes"), (no, "no")):
                    question = {"image": name, "text": q.ask_presence(asked), "label": label}
                    split_rows.append({"question_id": len(split_rows) + 1, **question})
    return rows


def _company() -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Count how often each kind occurs, and each pair together, in the world that the models grew up in."""
    rng = Random("company")
    frequency: Counter[str] = Counter()
    together: Counter[tuple[str, str]] = Counter()
    for _ in range(4000):
        kinds = sorted(sample(rng, BIASED).kinds)
        frequency.update(kinds)
        together.update((one, other) for one in kinds for other in kinds if one != other)
    return frequency, together


def _mmhal(split: str, nth: int, names: Sequence[str], scenes: Sequence[Scene]) -> dict[str, Any]:
    rng = Random(f"{split} mmhal {nth}")
    name, scene = names[nth % len(scenes)], scenes[nth % len(scenes)]
    kind = MMHAL_TYPES[nth % len(MMHAL_TYPES)]
    item = rng.choice(scene.items)
    one, other = (thing.kind for thing in rng.sample(scene.items, 2))
    absent = rng.choice(scene.missing() or scene.strangers())
    question = {
        "attribute": q.ask_color(item.kind),
        "adversarial": rng.choice((q.ask_color, q.ask_place))(absent),
        "comparison": q.ask_same_color(one, other),
        "counting": q.COUNT,
        "relation": q.ask_above(one, other),
        "environment": q.THEME,
        "holistic": q.DESCRIBE[0],
        "other": q.ask_object(item.cell),
    }[kind]
    return {
        "question_type": kind,
        "question_topic": scene.theme,
        "image_id": Path(name).stem,
        "image_src": name,
        "image_content": sorted(scene.kinds),
        "question": question,
        "gt_answer": q.answer(scene, question),
        "model_answer": "",
    }
