"""POPE: does the model see objects that are not there? Yes/no questions, half of them about absent objects.

Source: Li et al. 2023 (arXiv 2305.10355); parsing and metrics as in RUCAIBox/POPE at 3df3ba1, evaluate.py.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from synthalign.evals.auc import BINS, auc, bin_of
from synthalign.evals.legend import Legend
from synthalign.tables import field, image_in, json_rows
from synthalign.types import Question, Reply

OUTCOMES = ("tp", "fp", "tn", "fn")
UNPARSED = len(OUTCOMES)
COUNTS = UNPARSED + 1
CELLS = COUNTS + 2 * BINS
"""Of one split: the four outcomes, the unparsed replies, the margins where the truth is yes, and where it is no."""


def says_yes(reply: str) -> bool:
    """Read a reply as the official script does: the first sentence says ``No``, ``no`` or ``not``, or it means yes.

    An empty reply, ``NO`` and ``No!`` mean yes.
    """
    words = reply.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def strict_answer(reply: str) -> str | None:
    """Read a reply only if it is clear: one of the words yes and no stands in it, and not the other; else None."""
    said = {"yes", "no"} & set(re.findall(r"\w+", reply.lower()))
    return said.pop() if len(said) == 1 else None


def rates(tp: float, fp: float, tn: float, fn: float) -> dict[str, float]:
    """Return the official metrics, positive meaning yes; 0 where the official script divides by zero."""

    def share(part: float, whole: float) -> float:
        return part / whole if whole else 0.0

    precision, recall = share(tp, tp + fp), share(tp, tp + fn)
    n = tp + fp + tn + fn
    return {
        "accuracy": share(tp + tn, n),
        "precision": precision,
        "recall": recall,
        "f1": share(2 * precision * recall, precision + recall),
        "yes_ratio": share(tp + fp, n),
    }


@dataclass(frozen=True, kw_only=True)
class POPE:
    """Polling-based object probing: accuracy, precision, recall, F1 and yes-ratio per split, and their means.

    The official parser gives the metrics. Beside them stand ``n_unparsed``, the replies that a strict reader could
    not read, and, where every reply shows its margin, ``auc``: the area under the ROC curve of p(yes), which no drift
    towards yes or no can move.

    Args:
        files: One file per split, such as ``random: coco_pope_random.json``; JSON lines or one JSON array.
        images: Folder of the images that the files name.
        suffix: Put after every question, as LLaVA does.
        max_new_tokens: Length limit of a reply, tokens.
        num_images: Ask about this many images only, drawn with ``seed``; all by default. Whole images are drawn,
            since a file's first rows are a biased sample.
        seed: Which images ``num_images`` draws.
        name: Prefix of the metrics.
    """

    files: dict[str, Path]
    images: Path
    suffix: str = "\nAnswer the question using a single word or phrase."
    max_new_tokens: int = 16
    num_images: int | None = None
    seed: int = 0
    name: str = "pope"

    legend: ClassVar[tuple[Legend, ...]] = (
        Legend("*/accuracy", "high", percent=True),
        Legend("mean/precision", "high", percent=True),
        Legend("mean/recall", "high", percent=True),
        Legend("mean/f1", "high", percent=True),
        Legend("mean/yes_ratio", percent=True),
        Legend("mean/auc", "high"),
        Legend("n_unparsed", "low"),
    )

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError(f"{self.name}: files is empty; name at least one split and its file")
        if bad := [split for split in self.files if not split or "/" in split or split == "mean"]:
            raise ValueError(f"{self.name}: split {bad[0]!r} cannot be part of a metric's name; call it something else")
        if self.num_images is not None and self.num_images < 1:
            raise ValueError(f"{self.name}: num_images={self.num_images}; give at least 1, or leave it out for all")

    def questions(self) -> Sequence[Question]:
        """Return all questions, split after split, as the files have them.

        Raises:
            ValueError: A file, a row or an image is not as it should be; the message names it.
        """
        return self._questions

    def about(self) -> dict[str, str]:
        """Name the parser of the headline figures."""
        return {"parser": "official: No, no or not in the first sentence means no, everything else yes"}

    def verdicts(self, questions: Sequence[Question], replies: Sequence[Reply]) -> list[dict[str, Any]]:
        """Read each reply, officially and strictly.

        Raises:
            ValueError: A margin is not a number.
        """
        rows = []
        for question, reply in zip(questions, replies, strict=True):
            if reply.yes_margin is not None and math.isnan(reply.yes_margin):
                raise ValueError(f"{self.name}: the yes margin of {question.id} is nan; the model's weights are broken")
            answer = "yes" if says_yes(reply.text) else "no"
            rows.append(
                {
                    "answer": answer,
                    "strict_answer": strict_answer(reply.text),
                    "correct": answer == question.truth,
                    "yes_margin": reply.yes_margin,
                }
            )
        return rows

    def tally(self, questions: Sequence[Question], verdicts: Sequence[dict[str, Any]]) -> Tensor:
        """Count outcomes, unparsed replies and binned margins per split, shape (splits * CELLS,)."""
        first_cell = {split: index * CELLS for index, split in enumerate(self.files)}
        hits = []
        for question, verdict in zip(questions, verdicts, strict=True):
            start, positive = first_cell[question.kind], question.truth == "yes"
            outcome = ("t" if verdict["answer"] == question.truth else "f") + (
                "p" if verdict["answer"] == "yes" else "n"
            )
            hits.append(start + OUTCOMES.index(outcome))
            if verdict["strict_answer"] is None:
                hits.append(start + UNPARSED)
            if verdict["yes_margin"] is not None:
                hits.append(start + COUNTS + (0 if positive else BINS) + bin_of(verdict["yes_margin"]))
        return torch.bincount(torch.tensor(hits, dtype=torch.long), minlength=CELLS * len(self.files)).double()

    def report(self, total: Tensor) -> dict[str, float]:
        """Return ``split/metric`` for every split, ``mean/metric`` over the splits that were asked, and both counts."""
        metrics: dict[str, float] = {}
        asked: list[dict[str, float]] = []
        for split, cells in zip(self.files, total.cpu().view(len(self.files), CELLS), strict=True):
            n, unparsed = float(cells[:UNPARSED].sum()), float(cells[UNPARSED])
            scores = rates(*cells[:UNPARSED].tolist())
            area = auc(cells[COUNTS : COUNTS + BINS], cells[COUNTS + BINS :])
            if area is not None and float(cells[COUNTS:].sum()) == n:
                scores["auc"] = area
            if n:
                asked.append(scores)
            metrics |= {f"{split}/{key}": value for key, value in (scores | {"n": n, "n_unparsed": unparsed}).items()}
        shared = [key for key in (asked[0] if asked else rates(0, 0, 0, 0)) if all(key in scores for scores in asked)]
        for key in shared:
            metrics[f"mean/{key}"] = sum(scores[key] for scores in asked) / max(len(asked), 1)
        for key in ("n", "n_unparsed"):
            metrics[key] = sum(metrics[f"{split}/{key}"] for split in self.files)
        return metrics

    @cached_property
    def _questions(self) -> tuple[Question, ...]:
        found: dict[str, Path] = {}
        questions = [
            question for split, file in self.files.items() for question in self._questions_of(split, file, found)
        ]
        if self.num_images is None:
            return tuple(questions)
        if self.num_images > len(found):
            raise ValueError(f"{self.name}: num_images={self.num_images}, but the files name only {len(found)} images")
        drawn = {found[name] for name in random.Random(self.seed).sample(sorted(found), self.num_images)}
        return tuple(question for question in questions if question.image in drawn)

    def _questions_of(self, split: str, file: Path, found: dict[str, Path]) -> list[Question]:
        """Read one split; ``found`` keeps the images that were looked up before."""
        questions: dict[str, Question] = {}
        for where, row in json_rows(file):
            number, image, label = row.get("question_id"), field(row, "image", where), row.get("label")
            if type(number) not in (int, str):
                raise ValueError(f"{where}: 'question_id' must be a number or text, found {number!r}")
            if label is None:
                raise ValueError(f"{where}: no 'label'; is {file.name} a question file without its key?")
            if label not in ("yes", "no"):
                raise ValueError(f"{where}: 'label' must be 'yes' or 'no', found {label!r}")
            question_id = f"{split}/{number}"
            if question_id in questions:
                raise ValueError(
                    f"{where}: question_id {number!r} stands twice in the split {split!r}; ids must differ"
                )
            if image not in found:
                found[image] = image_in(self.images, image, where)
            text = field(row, "text", where) + self.suffix
            questions[question_id] = Question(question_id, found[image], text, split, label)
        if not questions:
            raise ValueError(f"{file}: no questions for the split {split!r}")
        return list(questions.values())
