"""CHAIR over free captions: how many of the objects a caption mentions are not in the image.

Source: Rohrbach et al. 2018 (arXiv 1809.02156); counts as in LisaAnne/Hallucination at 585f2d9, utils/chair.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from synthalign.evals.legend import Legend
from synthalign.tables import field, image_in, json_rows
from synthalign.types import Question, Reply

COUNTS = ("n", "n_hallucinated", "n_empty", "mentions", "invented", "objects", "covered", "words")


@dataclass(frozen=True, kw_only=True)
class Captions:
    """CHAIR with plain words: hallucinated objects in captions, and how much the captions cover.

    This is the plain-word variant of CHAIR: the caption's words are compared with the listed words as they stand,
    whole and without regard to case, with no lemmatisation. So ``seated`` is no chair, and a plural counts only if it
    is listed as a synonym. Where listed words overlap, the longest counts: a ``hot dog`` is no dog.

    Metrics: ``chair_i``, hallucinated mentions per mention; ``chair_s``, captions with a hallucinated mention;
    ``coverage``, distinct objects mentioned per object present; ``words``, the mean length of a caption; ``n`` and
    ``n_empty``. Short captions lower CHAIR: read it beside coverage and length.

    Args:
        file: One JSON object a line: ``id``, ``image``, ``question``, and ``objects``, the list of what is there.
        images: Folder of the images that the file names.
        objects: Text file, one object a line: its name, then its synonyms, separated by commas.
        max_new_tokens: Length limit of a caption, tokens.
        name: Prefix of the metrics.
    """

    file: Path
    images: Path
    objects: Path
    max_new_tokens: int = 256
    name: str = "captions"

    legend: ClassVar[tuple[Legend, ...]] = (
        Legend("chair_i", "low", percent=True),
        Legend("chair_s", "low", percent=True),
        Legend("coverage", "high", percent=True),
        Legend("words"),
        Legend("n_empty", "low"),
    )

    def questions(self) -> Sequence[Question]:
        """Return all questions in the file's order; ``truth`` lists the names of the objects in the image, each once.

        Raises:
            ValueError: A file, a row or an image is not as it should be; the message names it.
        """
        return self._questions

    def about(self) -> dict[str, str]:
        """Name the variant."""
        return {"variant": "plain words, no lemmatisation"}

    def verdicts(self, questions: Sequence[Question], replies: Sequence[Reply]) -> list[dict[str, Any]]:
        """List the objects each caption mentions, in its order, and those of them that are not in the image."""
        rows = []
        for question, reply in zip(questions, replies, strict=True):
            mentioned = self.mentions(reply.text)
            invented = [name for name in mentioned if name not in question.truth]
            rows.append(
                {
                    "correct": not invented,
                    "mentioned": mentioned,
                    "invented": invented,
                    "words": len(reply.text.split()),
                }
            )
        return rows

    def tally(self, questions: Sequence[Question], verdicts: Sequence[dict[str, Any]]) -> Tensor:
        """Sum captions, mentions, objects and words, shape (8,)."""
        total = torch.zeros(len(COUNTS), dtype=torch.float64)
        for question, verdict in zip(questions, verdicts, strict=True):
            mentioned, invented, words = verdict["mentioned"], verdict["invented"], verdict["words"]
            covered = set(mentioned) & set(question.truth)
            counts = (
                1,
                bool(invented),
                not words,
                len(mentioned),
                len(invented),
                len(question.truth),
                len(covered),
                words,
            )
            total += torch.tensor(counts, dtype=torch.float64)
        return total

    def report(self, total: Tensor) -> dict[str, float]:
        """Return the metrics; 0 where there is nothing to divide by."""
        count = dict(zip(COUNTS, total.tolist(), strict=True))
        return {
            "chair_i": count["invented"] / max(count["mentions"], 1),
            "chair_s": count["n_hallucinated"] / max(count["n"], 1),
            "coverage": count["covered"] / max(count["objects"], 1),
            "words": count["words"] / max(count["n"], 1),
            "n": count["n"],
            "n_empty": count["n_empty"],
        }

    def mentions(self, caption: str) -> list[str]:
        """Return the name of every object mentioned in a caption, in order, as often as it is mentioned."""
        return [self._names[_plain(match)] for match in self._pattern.findall(caption.lower())]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Every listed word with the name of its object."""
        if not self.objects.is_file():
            raise ValueError(f"{self.name}: no such file: {self.objects}")
        names: dict[str, str] = {}
        for number, line in enumerate(self.objects.read_text(encoding="utf-8").split("\n"), 1):
            words = [word for word in map(_plain, line.split(",")) if word]
            for word in words:
                if names.setdefault(word, words[0]) != words[0]:
                    raise ValueError(
                        f"{self.objects}, line {number}: {word!r} already stands for {names[word]!r}; list it once"
                    )
        if not names:
            raise ValueError(f"{self.objects}: no objects; write one a line, its synonyms after commas")
        return names

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._names, key=len, reverse=True)
        words = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in longest_first)
        return re.compile(rf"(?<!\w)(?:{words})(?!\w)")

    @cached_property
    def _questions(self) -> tuple[Question, ...]:
        questions: dict[str, Question] = {}
        for where, row in json_rows(self.file):
            question_id, objects = field(row, "id", where), row.get("objects")
            if question_id in questions:
                raise ValueError(f"{where}: id {question_id!r} stands twice; ids must differ")
            if not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
                raise ValueError(f"{where}: 'objects' must be a list of names, found {objects!r}")
            if unknown := [name for name in objects if _plain(name) not in self._names]:
                raise ValueError(f"{where}: object {unknown[0]!r} is not in {self.objects}; add it there")
            truth = list(dict.fromkeys(self._names[_plain(name)] for name in objects))
            image = image_in(self.images, field(row, "image", where), where)
            questions[question_id] = Question(question_id, image, field(row, "question", where), "caption", truth)
        if not questions:
            raise ValueError(f"{self.file}: no questions")
        return tuple(questions.values())


def _plain(word: str) -> str:
    """Case and spacing apart."""
    return " ".join(word.lower().split())
