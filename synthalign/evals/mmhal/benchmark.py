"""MMHal-Bench: 96 open questions whose answers a judge rates from 0 to 6 against a reference.

Source: Sun et al. 2023 (arXiv 2309.14525); parsing and metrics as in llava-rlhf/LLaVA-RLHF at 830a083,
Eval/eval_gpt_mmhal.py, but for types, which are read from the file.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple
from urllib.parse import unquote, urlparse

import torch
from torch import Tensor

from synthalign.evals.answers import IDS, matched, read_answers
from synthalign.evals.legend import Legend
from synthalign.evals.mmhal.ratings import SCORES, cell_of, figures, verdict_of
from synthalign.evals.questions import image_of, subset
from synthalign.tables import field, json_rows
from synthalign.types import Judge, Judgement, Question, Reply

TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}

log = logging.getLogger(__name__)


def parse_rating(text: str) -> Judgement:
    """Read a judge's text as the official script does: the one s of 0..6 for which ``rating: s`` stands in it.

    Where none or several do, the judgement is unparsed and its score 0, which counts as a hallucination.
    """
    found = [score for score in range(SCORES) if f"rating: {score}" in text.lower()]
    return Judgement(found[0], text, True) if len(found) == 1 else Judgement(0, text, False)


class Item(NamedTuple):
    """A question and what the benchmark calls its image, if it does."""

    question: Question
    image_id: str | None


@dataclass(frozen=True, kw_only=True)
class MMHal:
    """MMHal-Bench: mean rating, hallucination rate, and both of each question type.

    The official figures count an unparsed judgement as 0; ``n_unparsed`` and ``score_parsed``, the mean of the others,
    stand beside them. 96 questions are few: ``_low`` and ``_high`` bound the bootstrap's 95 % interval of the mean and
    of the rate, were other questions of their kind asked. Never compare figures across judges.

    Args:
        file: ``response_template.json``.
        images: Folder of the images that the file names, by the end of ``image_src``, or by ``image_id`` with any
            ending; null: they are not at hand, which is enough to score saved answers.
        judge: Rates the answers; in a ``KeptJudgements``, none of them twice. Without one the answers are saved
            unjudged and there are no figures.
        max_new_tokens: Length limit of an answer, tokens.
        num_images: Ask about this many images only, drawn with ``seed``; all by default.
        seed: Which images ``num_images`` draws.
        name: Prefix of the metrics.
    """

    file: Path
    images: Path | None
    judge: Judge | None = None
    max_new_tokens: int = 256
    num_images: int | None = None
    seed: int = 0
    name: str = "mmhal"

    legend: ClassVar[tuple[Legend, ...]] = (
        Legend("score", "high"),
        Legend("score_low"),
        Legend("score_high"),
        Legend("hallucination_rate", "low", percent=True),
        Legend("hallucination_rate_low", percent=True),
        Legend("hallucination_rate_high", percent=True),
        Legend("n_unparsed", "low"),
        Legend("score_parsed", "high", headline=False),
        Legend("*/score", "high", headline=False),
        Legend("*/hallucination_rate", "low", percent=True, headline=False),
        Legend("n", headline=False),
        Legend("*/n", headline=False),
    )

    def questions(self) -> Sequence[Question]:
        """Return the questions in the file's order; ``truth`` holds the image's contents and the reference answer.

        Raises:
            ValueError: The file, a row or an image is not as it should be; the message names it.
        """
        return self._questions

    def about(self) -> dict[str, str]:
        """Name the judge."""
        return {"judge": "none"} if self.judge is None else self.judge.about()

    def replies_in(self, file: Path) -> list[Reply]:
        """Read saved answers: one to each question.

        Args:
            file: Our own samples; rows with ``question_id`` (ours, or the benchmark's ``image_id`` where only one
                question has it) and ``text`` or ``answer``; or the benchmark's own template with every
                ``model_answer`` filled in, which has no ids: each row must ask what the question at its place asks.

        Raises:
            ValueError: A row is not as it should be; or the answers are not exactly those to these questions.
        """
        if any("model_answer" in row and not any(key in row for key in IDS) for _, row in json_rows(file)):
            return self._replies_in_template(file)
        ids = {item.question.id for item in self._items}
        times = Counter(item.image_id for item in self._items)
        by_image = {image_id: question.id for question, image_id in self._items if times[image_id] == 1}
        answers: dict[str, Reply] = {}
        for key, reply in read_answers(file, ids=(*IDS, "image_id")).items():
            question_id = key if key in ids else by_image.get(key, key)
            if question_id in answers:
                raise ValueError(f"{file}: two answers to {question_id!r}, one of them by its image_id {key!r}")
            answers[question_id] = reply
        return matched(self._questions, answers, file)

    def verdicts(self, questions: Sequence[Question], replies: Sequence[Reply]) -> list[dict[str, Any]]:
        """Let the judge rate the replies; without one, mark them unjudged.

        Raises:
            ValueError: The judge gave a rating outside 0..6, or not one to each answer.
        """
        if self.judge is None:
            if _speaks():
                log.warning(
                    "%s: NO JUDGE: answers are saved UNJUDGED, without any score. Set `judge`, or rate them later: "
                    "synthalign score mmhal --questions %s --answers SAVED --judge-server URL --served-model NAME",
                    self.name,
                    self.file,
                )
            return [{"correct": None, "judged": False} for _ in questions]
        if not questions:
            return []
        try:
            judgements = self.judge.judge(
                [question.truth["contents"] for question in questions],
                [question.text for question in questions],
                [question.truth["reference"] for question in questions],
                [reply.text for reply in replies],
            )
        finally:  # a judge that failed must not stand beside a model in training either
            self.judge.release()
        return self.judged(questions, judgements)

    def judged(self, questions: Sequence[Question], judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
        """Turn judgements, one to each question, into verdicts.

        Raises:
            ValueError: There are more or fewer of them, or a rating is outside 0..6.
        """
        if len(judgements) != len(questions):
            raise ValueError(f"{self.name}: {len(judgements)} judgements of the answers to {len(questions)} questions")
        rows = zip(questions, judgements, strict=True)
        return [verdict_of(judgement, f"{self.name}: {question.id}") for question, judgement in rows]

    def tally(self, questions: Sequence[Question], verdicts: Sequence[dict[str, Any]]) -> Tensor:
        """Count judged answers per type and score, unparsed ones apart, shape (8 types * (7 scores + 1),)."""
        hits = [
            TYPES.index(question.kind) * (SCORES + 1) + cell_of(verdict)
            for question, verdict in zip(questions, verdicts, strict=True)
            if verdict["judged"]
        ]
        return torch.bincount(torch.tensor(hits, dtype=torch.long), minlength=len(TYPES) * (SCORES + 1)).double()

    def report(self, total: Tensor) -> dict[str, float]:
        """Return the figures of the judged answers: no figure at all where none was judged."""
        by_type = total.cpu().double().view(len(TYPES), SCORES + 1)
        metrics = figures(by_type.sum(0))
        for kind, counts in zip(TYPES, by_type, strict=True):
            of_type = figures(counts)
            metrics |= {f"{kind}/{key}": of_type[key] for key in ("score", "hallucination_rate", "n") if of_type}
        return metrics

    @cached_property
    def _questions(self) -> tuple[Question, ...]:
        # Drawn by the benchmark's own ids: the same ones whether or not the images are at hand, and under any name.
        named = [one._replace(image=Path(image_id or one.image.name)) for one, image_id in self._items]
        drawn = {question.id for question in subset(named, self.num_images, self.seed, self.name)}
        return tuple(item.question for item in self._items if item.question.id in drawn)

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        """All of the file, whatever is asked of it."""
        by_stem = self._images_by_stem()
        items = []
        for number, (where, row) in enumerate(json_rows(self.file)):
            kind, contents = field(row, "question_type", where), row.get("image_content")
            if kind not in TYPES:
                raise ValueError(f"{where}: unknown question_type {kind!r}; MMHal-Bench has {', '.join(TYPES)}")
            if not isinstance(contents, list) or not all(isinstance(label, str) for label in contents):
                raise ValueError(f"{where}: 'image_content' must be a list of texts, found {contents!r}")
            truth = {"contents": contents, "reference": field(row, "gt_answer", where)}
            image = self._image(row, where, by_stem)
            image_id = _image_id(row)
            question_id = f"{number:03d}-{image_id}"  # MMHal-Bench has no ids, and an image may come again
            items.append(Item(Question(question_id, image, field(row, "question", where), kind, truth), image_id))
        if not items:
            raise ValueError(f"{self.file}: no questions")
        return tuple(items)

    def _images_by_stem(self) -> dict[str, list[str]]:
        if self.images is None:
            return {}
        if not self.images.is_dir():
            raise ValueError(f"{self.name}: no image folder {self.images}")
        by_stem: dict[str, list[str]] = {}
        for path in sorted(self.images.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                by_stem.setdefault(path.stem, []).append(path.name)
        return by_stem

    def _image(self, row: dict[str, Any], where: str, by_stem: dict[str, list[str]]) -> Path:
        """Find an image under the last part of its URL, or its own relative path, or by its id."""
        source = field(row, "image_src", where)
        try:
            name = PurePosixPath(unquote(urlparse(source).path)).name if "://" in source else source
        except ValueError as error:
            raise ValueError(f"{where}: 'image_src' is no URL ({error}): {source!r}") from None
        same_id = by_stem.get(str(row.get("image_id")), [])
        if self.images is not None and len(same_id) == 1 and not (name and (self.images / name).is_file()):
            name = same_id[0]
        return image_of(self.images, name, where)

    def _replies_in_template(self, file: Path) -> list[Reply]:
        """Read the benchmark's own file, whose rows stand for the questions at the same places."""
        rows = list(json_rows(file))
        if len(rows) != len(self._items):
            raise ValueError(
                f"{file}: {len(rows)} answers without ids to the {len(self._items)} questions of {self.file}"
            )
        replies = {}
        for (where, row), (question, image_id) in zip(rows, self._items, strict=True):
            if row.get("question") != question.text or _image_id(row) != image_id:
                raise ValueError(
                    f"{where}: asks {row.get('question')!r} about {row.get('image_id')!r}, where {self.file} asks "
                    f"{question.text!r} about {image_id!r}; is it in another order, or of other questions?"
                )
            replies[question.id] = Reply(field(row, "model_answer", where))
        if not any(reply.text for reply in replies.values()):
            raise ValueError(f"{file}: every model_answer is empty; it is the template, without the answers")
        return [replies[question.id] for question in self._questions]


def _image_id(row: dict[str, Any]) -> str | None:
    return None if row.get("image_id") is None else str(row["image_id"])


def _speaks() -> bool:
    """Whether this process is the one, of all that share an evaluation, that says what all would say."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
