"""AMBER: do the model's descriptions invent objects, and does it say yes to what is not there?

Source: Wang et al. 2023 (arXiv 2311.07397); files and figures as in junyangwang0410/AMBER at 534babf, inference.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from synthalign.evals.amber.counts import OFFSETS, discriminative_rates, generative_rates, read_nouns
from synthalign.evals.amber.files import GENERATIVE, Words, read_questions, read_words
from synthalign.evals.amber.words import Nouns, PlainNouns
from synthalign.evals.answers import matched, read_answers
from synthalign.evals.legend import Legend
from synthalign.evals.questions import subset
from synthalign.types import Question, Reply

DESCRIBED = ("n", "n_clean", "n_empty", "nouns", "invented", "objects", "covered", "traps", "trapped", "words")
"""What is summed over descriptions."""

ASKED = ("n", "n_correct", "n_no", "n_said_no", "n_both", "n_unparsed")
"""What is summed over the yes/no questions of a kind."""

DIMENSIONS = {
    "discriminative": ("existence", "state", "number", "action", "relation"),
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "state": ("state",),
    "number": ("number",),
    "action": ("action",),
    "relation": ("relation",),
}
"""The kinds of questions in each group of the report."""

YES_NO = DIMENSIONS["discriminative"]

Query = Literal[
    "all",
    "generative",
    "discriminative",
    "discriminative-existence",
    "discriminative-attribute",
    "discriminative-relation",
]


@dataclass(frozen=True, kw_only=True)
class AMBER:
    """AMBER's descriptions and its yes/no questions, all of them or the part that ``query`` names.

    Of descriptions, ``generative/``: ``chair``, invented nouns per noun; ``cover``, objects mentioned per object that
    is there; ``hal``, descriptions with an invented noun; ``cog``, objects mentioned per object that one would expect
    and that is not there; ``words`` and ``n_empty``. Short descriptions lower CHAIR: read it beside cover and words.

    Of yes/no questions, ``discriminative/`` and every dimension: ``accuracy``, and ``precision``, ``recall`` and ``f1``
    of the answer No. Only the exact replies ``Yes`` and ``No`` count; ``n_unparsed`` are all others, which are wrong.

    ``score`` is (1 - CHAIR + F1) / 2, where all dimensions were asked. Rounded to a tenth of a percent all figures are
    the original's, with words compared for equality where it asks spaCy how similar they are; those of descriptions
    with ``WordNetNouns`` exactly, and closely with plain nouns.

    The two halves want replies of different lengths: in training, give each an AMBER of its own.

    Args:
        folder: ``data`` of AMBER's repository: ``query/``, ``annotations.json``, ``relation.json``, ``safe_words.txt``.
        images: Folder of the images that the file names; null: they are not at hand, which is enough to score saved
            answers.
        query: Which of the files in ``query/`` to ask.
        nouns: Finds the nouns of a description; ``PlainNouns`` by default.
        suffix: Put after every yes/no question. AMBER's own are bare, though only one word counts.
        max_new_tokens: Length limit of a reply, tokens; 16 are plenty for the yes/no questions alone.
        num_images: Ask about this many images only, drawn with ``seed``; all by default.
        seed: Which images ``num_images`` draws.
        name: Prefix of the metrics.
    """

    folder: Path
    images: Path | None
    query: Query = "all"
    nouns: Nouns | None = None
    suffix: str = "\nAnswer the question using a single word or phrase."
    max_new_tokens: int = 512
    num_images: int | None = None
    seed: int = 0
    name: str = "amber"

    legend: ClassVar[tuple[Legend, ...]] = (
        Legend("score", "high", percent=True),
        Legend("generative/chair", "low", percent=True),
        Legend("generative/cover", "high", percent=True),
        Legend("generative/hal", "low", percent=True),
        Legend("generative/cog", "low", percent=True),
        Legend("generative/words"),
        Legend("generative/n_empty", "low", headline=False),
        Legend("discriminative/accuracy", "high", percent=True),
        Legend("discriminative/precision", "high", percent=True),
        Legend("discriminative/recall", "high", percent=True),
        Legend("discriminative/f1", "high", percent=True),
        Legend("n_unparsed", "low"),
        Legend("*/accuracy", "high", percent=True, headline=False),
        Legend("*/precision", "high", percent=True, headline=False),
        Legend("*/recall", "high", percent=True, headline=False),
        Legend("*/f1", "high", percent=True, headline=False),
        Legend("*/n_unparsed", "low", headline=False),
        *(Legend(key, headline=False) for key in ("*/n", "n")),
    )

    def questions(self) -> Sequence[Question]:
        """Return the questions in the file's order.

        Raises:
            ValueError: A file, a row or an image is not as it should be; the message names it.
        """
        return self._questions

    def about(self) -> dict[str, str]:
        """Name what finds and compares the nouns, the parser of yes/no questions, and what counts are divided by."""
        kinds = {question.kind for question in self.questions()}
        about = {}
        if GENERATIVE in kinds:
            about["nouns"] = self._nouns.about()
            about["similarity"] = "equal words"
        if kinds - {GENERATIVE}:
            about["parser"] = "official: the reply is exactly Yes or No, or wrong; precision and recall are of No"
        return about | {"rates": OFFSETS}

    def replies_in(self, file: Path) -> list[Reply]:
        """Read saved answers: ``[{"id", "response"}, ...]`` as AMBER has them, or our own samples.

        Raises:
            ValueError: The file is malformed, or its ids are not those of the questions.
        """
        return matched(self.questions(), read_answers(file), file)

    def verdicts(self, questions: Sequence[Question], replies: Sequence[Reply]) -> list[dict[str, Any]]:
        """List what each description mentions and invents; read each yes/no reply, exactly as it stands."""
        return [
            self._described(question.truth, reply.text)
            if question.kind == GENERATIVE
            else _answered(question.truth, reply.text)
            for question, reply in zip(questions, replies, strict=True)
        ]

    def tally(self, questions: Sequence[Question], verdicts: Sequence[dict[str, Any]]) -> Tensor:
        """Sum what ``DESCRIBED`` names, then of every kind of yes/no question what ``ASKED`` names, shape (40,)."""
        total = torch.zeros(len(DESCRIBED) + len(YES_NO) * len(ASKED), dtype=torch.float64)
        for question, verdict in zip(questions, verdicts, strict=True):
            if question.kind == GENERATIVE:
                total[: len(DESCRIBED)] += torch.tensor(_description(question.truth, verdict), dtype=torch.float64)
                continue
            said, no = verdict["answer"], question.truth == "no"
            counts = (1, verdict["correct"], no, said == "no", no and said == "no", said is None)
            start = len(DESCRIBED) + YES_NO.index(question.kind) * len(ASKED)
            total[start : start + len(ASKED)] += torch.tensor(counts, dtype=torch.float64)
        return total

    def report(self, total: Tensor) -> dict[str, float]:
        """Return ``group/metric`` for every group of which there are questions, and ``score`` if all were asked."""
        total = total.cpu()
        described = dict(zip(DESCRIBED, total[: len(DESCRIBED)].tolist(), strict=True))
        asked = dict(zip(YES_NO, total[len(DESCRIBED) :].view(len(YES_NO), len(ASKED)), strict=True))
        metrics: dict[str, float] = {}
        if described["n"]:
            rates = generative_rates(described) | {key: described[key] for key in ("n", "n_empty")}
            metrics |= {f"{GENERATIVE}/{key}": value for key, value in rates.items()}
        for group, kinds in DIMENSIONS.items():
            count = dict(zip(ASKED, torch.stack([asked[kind] for kind in kinds]).sum(0).tolist(), strict=True))
            if count["n"]:
                rates = discriminative_rates(group, count) | {key: count[key] for key in ("n", "n_unparsed")}
                metrics |= {f"{group}/{key}": value for key, value in rates.items()}
        counts = {"n": metrics.get("generative/n", 0.0) + metrics.get("discriminative/n", 0.0)}
        if "discriminative/n" in metrics:
            counts["n_unparsed"] = metrics["discriminative/n_unparsed"]
        if all(f"{group}/n" in metrics for group in (GENERATIVE, "existence", "attribute", "relation")):
            metrics = {"score": (1 - metrics["generative/chair"] + metrics["discriminative/f1"]) / 2} | metrics
        return metrics | counts

    def _described(self, truth: dict[str, list[str]], text: str) -> dict[str, Any]:
        words = self._words
        nouns = self._nouns.find(text, words.vocabulary)
        read = read_nouns(nouns, truth["truth"], truth["hallu"], words.related, words.safe)
        return {
            "correct": not read.invented,
            "mentioned": nouns,
            "invented": read.invented,
            "covered": [truth["truth"][place] for place in read.covered],
            "expected": [truth["hallu"][place] for place in read.expected],
            "words": len(text.split()),
        }

    @cached_property
    def _nouns(self) -> Nouns:
        return PlainNouns() if self.nouns is None else self.nouns

    @cached_property
    def _words(self) -> Words:
        return read_words(self.folder)

    @cached_property
    def _questions(self) -> tuple[Question, ...]:
        query = self.folder / "query" / f"query_{self.query}.json"
        questions = read_questions(self.folder, query, self.images, self.suffix)
        described = [question for question in questions if question.kind == GENERATIVE]
        for question in described:
            named = [*question.truth["truth"], *question.truth["hallu"]]
            if unknown := [word for word in named if word not in self._words.related]:
                raise ValueError(
                    f"{self.folder / 'relation.json'}: no {unknown[0]!r}, which annotation {question.id} names"
                )
        return subset(questions, self.num_images, self.seed, self.name)


def _answered(truth: str, text: str) -> dict[str, Any]:
    answer = {"Yes": "yes", "No": "no"}.get(text)
    return {"answer": answer, "correct": answer == truth}


def _description(truth: dict[str, list[str]], verdict: dict[str, Any]) -> tuple[float, ...]:
    return (
        1,
        verdict["correct"],
        not verdict["words"],
        len(verdict["mentioned"]),
        len(verdict["invented"]),
        len(truth["truth"]),
        len(verdict["covered"]),
        len(truth["hallu"]),
        len(verdict["expected"]),
        verdict["words"],
    )
