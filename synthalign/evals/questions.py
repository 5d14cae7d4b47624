"""What all benchmarks do with their questions: find the images, and ask about some of them only."""

import random
from collections.abc import Sequence
from pathlib import Path

from synthalign.tables import image_in
from synthalign.types import Question


def image_of(images: Path | None, name: str, where: str) -> Path:
    """Find an image that a row names.

    Args:
        images: The folder; None where the images are not at hand and not needed, since answers were saved before.
        name: What the row says.
        where: The row, to begin a message with.

    Raises:
        ValueError: There is no such image, or the name leads out of the folder.
    """
    return Path(name) if images is None else image_in(images, name, where)


def subset(questions: Sequence[Question], num_images: int | None, seed: int, name: str) -> tuple[Question, ...]:
    """Keep all questions about some images, drawn by the seed alone: a file's first images are a biased sample.

    Args:
        questions: All.
        num_images: How many images; None keeps all.
        seed: Which.
        name: The evaluation's, for messages.

    Raises:
        ValueError: There are fewer images than that, or fewer than one is asked for.
    """
    if num_images is None:
        return tuple(questions)
    if num_images < 1:
        raise ValueError(f"{name}: num_images={num_images}; give at least 1, or leave it out for all")
    images = sorted({question.image for question in questions})
    if num_images > len(images):
        raise ValueError(f"{name}: num_images={num_images}, but the questions are about {len(images)} images only")
    drawn = set(random.Random(seed).sample(images, num_images))
    return tuple(question for question in questions if question.image in drawn)
