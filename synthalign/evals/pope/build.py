"""POPE for any images of which the objects are known: questions about what is there, and about what is not.

Source: Li et al. 2023 (arXiv 2305.10355); the rules of RUCAIBox/POPE at 3df3ba1, main.py and utils.py.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from synthalign.evals.objects import read_objects
from synthalign.store import write_atomically

Strategy = Literal["random", "popular", "adversarial"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


class Written(NamedTuple):
    """What was written, and what was left out."""

    files: dict[str, Path]
    """By strategy."""

    num_images: int
    num_questions: int
    """Of each strategy."""

    left_out: dict[str, int]
    """How many images or questions, by the reason."""

    def __str__(self) -> str:
        """Say it in one line."""
        names = ", ".join(map(str, self.files.values()))
        left_out = ", ".join(f"{reason} ({count})" for reason, count in self.left_out.items() if count)
        return f"{names}: {self.num_questions} questions about {self.num_images} images in each" + (
            f"; left out: {left_out}" if left_out else ""
        )


def build(
    objects: Mapping[str, Sequence[str]],
    *,
    num_images: int = 500,
    per_image: int = 3,
    strategies: Sequence[Strategy] = STRATEGIES,
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """Make questions, half of them about absent objects: after each present one, an absent one not asked about yet.

    Present are the first ``per_image`` objects of an image. The absent one is: ``random``, any; ``popular``, the one in
    most images; ``adversarial``, the one that most often stands beside that present object, or any if none is left that
    ever does. Both count in the drawn images, and of equals take what comes first in them. An image in which fewer than
    ``per_image`` objects are absent is asked about as many present ones as absent ones.

    Args:
        objects: Objects of each image.
        num_images: How many images to draw.
        per_image: Present objects to ask about in each, and as many absent ones. Images with fewer objects are not
            drawn.
        strategies: How the absent ones are chosen, one split each.
        seed: Draws the images, and what is random: the same objects and seed give the same questions.

    Returns:
        Rows of POPE's files by strategy: ``question_id`` from 1, ``image``, ``text``, ``label``.

    Raises:
        ValueError: A number is below 1, a strategy is none, or too few images have enough objects.
    """
    if unknown := [strategy for strategy in strategies if strategy not in STRATEGIES]:
        raise ValueError(f"no strategy {unknown[0]!r}: there are {', '.join(STRATEGIES)}")
    if not strategies or min(num_images, per_image) < 1:
        raise ValueError(f"num_images={num_images}, per_image={per_image}: give at least 1, and a strategy at least")
    known = {image: list(dict.fromkeys(names)) for image, names in objects.items()}
    fit = [image for image, names in known.items() if len(names) >= per_image]
    if len(fit) < num_images:
        raise ValueError(
            f"{num_images} images were asked for, and {len(fit)} of {len(known)} have at least {per_image} objects; "
            "ask for fewer images, or for fewer objects of each"
        )
    chosen = set(random.Random(seed).sample(fit, num_images))
    drawn = {image: known[image] for image in fit if image in chosen}
    ranks = _Ranks(drawn.values())
    return {strategy: _questions(drawn, ranks, per_image, strategy, seed) for strategy in strategies}


def write(
    objects_file: Path,
    out: Path,
    *,
    num_images: int = 500,
    per_image: int = 3,
    strategies: Sequence[Strategy] = STRATEGIES,
    seed: int = 0,
) -> Written:
    """Build POPE from a file of objects (``read_objects``) and write ``pope_<strategy>.jsonl`` into a folder.

    Raises:
        ValueError: The objects are not as they should be, or the folder has such a file already.
        RuntimeError: The disk does not take it.
    """
    files = {str(strategy): out / f"pope_{strategy}.jsonl" for strategy in strategies}
    if there := [file for file in files.values() if file.exists()]:
        raise ValueError(f"{there[0]} exists already: name another folder, or remove it")
    objects = read_objects(objects_file)
    splits = build(objects, num_images=num_images, per_image=per_image, strategies=strategies, seed=seed)
    for strategy, rows in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(files[strategy], lines.encode())
    few = sum(len(set(names)) < per_image for names in objects.values())
    num_questions = len(next(iter(splits.values())))
    left_out = {
        "images without an object" if per_image == 1 else f"images with fewer than {per_image} objects": few,
        "images not drawn": len(objects) - few - num_images,
        "questions about images with too few objects absent": 2 * per_image * num_images - num_questions,
    }
    return Written(files, num_images, num_questions, left_out)


class _Ranks:
    """All objects, those in most images first; and beside each, those that most often stand with it."""

    def __init__(self, images: Iterable[Sequence[str]]) -> None:
        popular: Counter[str] = Counter()
        beside: dict[str, Counter[str]] = {}
        for names in images:
            popular.update(names)
            for name in names:
                beside.setdefault(name, Counter()).update(other for other in names if other != name)
        self.vocabulary = list(popular)
        self.popular = _sorted(popular)
        self.beside = {name: _sorted(others) for name, others in beside.items()}


def _sorted(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda name: -counts[name])  # stable: of equals, the first seen


def _questions(
    drawn: Mapping[str, Sequence[str]], ranks: _Ranks, per_image: int, strategy: Strategy, seed: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for image, names in drawn.items():
        rng = random.Random(f"{seed}/{strategy}/{image}")
        there = set(names)
        absent = [name for name in ranks.vocabulary if name not in there]
        for present in names[: min(per_image, len(absent))]:
            wanted = {"random": [], "popular": ranks.popular, "adversarial": ranks.beside[present]}[strategy]
            missing = next((name for name in wanted if name in absent), None) or rng.choice(absent)
            absent.remove(missing)
            for name, label in ((present, "yes"), (missing, "no")):
                rows.append({"question_id": len(rows) + 1, "image": image, "text": _text(name), "label": label})
    return rows


def _text(name: str) -> str:
    return f"Is there {'an' if name[0].lower() in 'aeiou' else 'a'} {name} in the image?"
