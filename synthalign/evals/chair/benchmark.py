"""CHAIR over free captions: how many of the objects a caption mentions are not in the image.

Source: Rohrbach et al. 2018 (arXiv 1809.02156); counts as in LisaAnne/Hallucination at 6e4d33c, utils/chair.py, and
the coverage as Recall in Maxlinn/CHAIR-metric-standalone at 640c507, chair.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from synthalign.evals.answers import matched, read_answers
from synthalign.evals.chair.answers import captions_by_image, meant
from synthalign.evals.chair.words import PlainWords, Words, plain, read_synonyms
from synthalign.evals.legend import Legend
from synthalign.evals.questions import image_of, subset
from synthalign.tables import field, json_rows
from synthalign.types import Question, Reply

COUNTS = ("n", "n_hallucinated", "n_empty", "mentions", "invented", "objects", "covered", "words")


@dataclass(frozen=True, kw_only=True)
class CHAIR:
    """Hallucinated objects in captions, and how much of what is there the captions cover.

    Every mention counts: an object that is mentioned twice and is not there is two hallucinated mentions of two. What
    is there counts once. How mentions are found is the variant, ``words``, and figures of different variants cannot be
    compared; so it stands in the metrics' name.

    Metrics: ``chair_i``, hallucinated mentions per mention; ``chair_s``, captions with a hallucinated mention;
    ``coverage``, distinct objects mentioned per object present (elsewhere called recall); ``words`` and ``mentions``
    per caption; ``n`` and ``n_empty``. Short captions lower CHAIR: read it beside coverage and length.

    Args:
        file: What is in each image, JSON lines or one JSON array: ``image``, ``objects``, the list of what is there,
            and if wanted ``id``, by default the image's name, and ``question``.
        images: Folder of the images that the file names; null: they are not at hand, which is enough to score saved
            answers.
        synonyms: Text file, one object a line: its name, then its synonyms, separated by commas.
        words: How mentions are found: ``chair.words.PlainWords``, the default, or ``chair.lemmas.WordNetWords``.
        question: Asked about an image whose row has no question of its own. The default is that of shikiw/OPERA at
            61426ef, chair_eval.py.
        max_new_tokens: Length limit of a caption, tokens.
        num_images: Ask about this many images only, drawn with ``seed``; all by default.
        seed: Which images ``num_images`` draws.
        name: Prefix of the metrics; by default ``chair_`` and the variant.
    """

    file: Path
    images: Path | None
    synonyms: Path
    words: Words | None = None
    question: str = "Please describe this image in detail."
    max_new_tokens: int = 512
    num_images: int | None = None
    seed: int = 0
    name: str = ""

    legend: ClassVar[tuple[Legend, ...]] = (
        Legend("chair_i", "low", percent=True),
        Legend("chair_s", "low", percent=True),
        Legend("coverage", "high", percent=True),
        Legend("words"),
        Legend("mentions", headline=False),
        Legend("n_empty", "low"),
        Legend("n", headline=False),
    )

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", f"chair_{self._words.variant}")

    def questions(self) -> Sequence[Question]:
        """Return the questions in the file's order; ``truth`` lists the names of the objects in the image, each once.

        Raises:
            ValueError: A file, a row or an image is not as it should be; the message names it.
        """
        return subset(self._rows[0], self.num_images, self.seed, self.name)

    def about(self) -> dict[str, str]:
        """Name the variant, and where the truth is from if the file says so."""
        truth = "; ".join(self._rows[1])
        return self._words.about(self._listed) | ({"truth": truth} if truth else {})

    def replies_in(self, file: Path) -> list[Reply]:
        """Read captions that were saved before, one to every question.

        Args:
            file: Our own samples; rows with ``id`` or ``question_id``; or rows of ``caption`` and ``image_id`` or
                ``image``, which is an image's name, without its suffix if that is clear, or the number of a COCO image.

        Raises:
            ValueError: The file is malformed, a caption is missing or one too many, or its image's id does not tell
                which of several questions is meant.
        """
        questions, captions = self.questions(), captions_by_image(file)
        if captions is None:
            return matched(questions, read_answers(file), file)
        places = meant(captions, [question.image for question in questions])
        if foreign := [image_id for image_id, of in places.items() if not of]:
            known = questions[0].image.name
            raise ValueError(
                f"{file}: {len(foreign)} of {len(captions)} captions are of no image in {self.file}: "
                f"{', '.join(map(repr, foreign[:3]))}{', …' * (len(foreign) > 3)}; its images are named as {known!r} is"
            )
        answers: dict[str, Reply] = {}
        for image_id, caption in captions.items():
            asked = [questions[place].id for place in places[image_id]]
            if len(asked) > 1:
                raise ValueError(
                    f"{file}: image_id {image_id} may mean any of {', '.join(asked)}; name the question's id"
                )
            if asked[0] in answers:
                raise ValueError(f"{file}: image_id {image_id}: a second caption of {asked[0]!r}; ids must differ")
            answers[asked[0]] = caption
        return matched(questions, answers, file)

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
            "mentions": count["mentions"] / max(count["n"], 1),
            "n": count["n"],
            "n_empty": count["n_empty"],
        }

    def mentions(self, caption: str) -> list[str]:
        """Return the name of every object mentioned in a caption, in order, as often as it is mentioned."""
        return self._finder(caption)

    @cached_property
    def _words(self) -> Words:
        return self.words or PlainWords()

    @cached_property
    def _listed(self) -> dict[str, str]:
        return read_synonyms(self.synonyms)

    @cached_property
    def _finder(self) -> Callable[[str], list[str]]:
        return self._words.finder(self._listed)

    @cached_property
    def _rows(self) -> tuple[list[Question], list[str]]:
        """All questions, and where the file says its truth is from."""
        names = {plain(word): name for word, name in self._listed.items()}
        questions: dict[str, Question] = {}
        sources: dict[str, None] = {}
        for where, row in json_rows(self.file):
            image, objects = field(row, "image", where), row.get("objects")
            question_id = field({"id": image} | row, "id", where)
            if question_id in questions:
                raise ValueError(f"{where}: id {question_id!r} stands twice; ids must differ")
            if not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
                raise ValueError(f"{where}: 'objects' must be a list of names, found {objects!r}")
            if unknown := [name for name in objects if plain(name) not in names]:
                raise ValueError(f"{where}: object {unknown[0]!r} is not in {self.synonyms}; add it there")
            truth = list(dict.fromkeys(names[plain(name)] for name in objects))
            text = field({"question": self.question} | row, "question", where)
            questions[question_id] = Question(question_id, image_of(self.images, image, where), text, "caption", truth)
            if "truth_from" in row:
                sources[field(row, "truth_from", where)] = None
        if not questions:
            raise ValueError(f"{self.file}: no questions; the file is empty")
        return list(questions.values()), list(sources)
