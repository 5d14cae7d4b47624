"""MME's hallucination subset: two yes/no questions about each image, one of either truth; both right counts extra.

Source: Fu et al. 2023 (arXiv 2306.13394); parsing and scores as in BradyFU/Awesome-Multimodal-Large-Language-Models at
dd29509 (branch Evaluation), tools/eval_tool.zip, calculation.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from synthalign.evals.answers import matched, read_answers
from synthalign.evals.legend import Legend
from synthalign.evals.mme.files import PAIR, read_results, read_task
from synthalign.evals.questions import subset
from synthalign.types import Question, Reply

HALLUCINATION = ("existence", "count", "position", "color")
"""The tasks that the literature takes for hallucinations; 30 images each, 200 points each."""

TASK = ("n", "n_correct", "n_unparsed")
"""What is summed of each task; of each image it is its questions and the right ones among them."""


def parse_answer(reply: str) -> str:
    """Read a reply as the official script does: yes, or else no, anywhere in its first four characters; else other.

    So ``not`` and ``know`` mean no, and a reply that begins with four other characters is none.
    """
    start = reply.lower()[:4]
    return next((answer for answer in ("yes", "no") if answer in start), "other")


@dataclass(frozen=True, kw_only=True)
class MME:
    """MME's existence, count, position and color: accuracy, and accuracy+, images with both answers right.

    ``score`` of a task is 100 accuracy + 100 accuracy+, at most 200; ``score`` of all is their sum, at most 800. A
    reply that is neither yes nor no is wrong, and counted in ``n_unparsed``.

    Args:
        folder: The release's (``existence/1.jpg`` beside ``existence/1.txt``), or the evaluation tool's
            ``Your_Results`` (``existence.txt``).
        images: Folder of the images that the file names; null: they are not at hand, which is enough to score saved
            answers. An image lies in the folder of its task, or in ``images`` in it.
        tasks: Which of MME's tasks to ask; their files are all read alike.
        max_new_tokens: Length limit of a reply, tokens.
        num_images: Ask about this many images only, drawn with ``seed``; all by default.
        seed: Which images ``num_images`` draws.
        name: Prefix of the metrics.
    """

    folder: Path
    images: Path | None
    tasks: tuple[str, ...] = HALLUCINATION
    max_new_tokens: int = 16
    num_images: int | None = None
    seed: int = 0
    name: str = "mme"

    legend: ClassVar[tuple[Legend, ...]] = (
        Legend("score", "high"),
        Legend("*/score", "high"),
        Legend("*/accuracy", "high", percent=True, headline=False),
        Legend("*/accuracy_plus", "high", percent=True, headline=False),
        Legend("n_unparsed", "low"),
        Legend("*/n_unparsed", "low", headline=False),
        *(Legend(key, headline=False) for key in ("*/n", "n")),
    )

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"{self.name}: tasks must name at least one task, each once, found {list(self.tasks)}")

    def questions(self) -> Sequence[Question]:
        """Return all questions, task after task.

        Raises:
            ValueError: A file, a row or an image is not as it should be; the message names it.
        """
        return self._questions

    def about(self) -> dict[str, str]:
        """Name the parser."""
        return {"parser": "official: yes, or else no, within the first four characters; everything else is wrong"}

    def replies_in(self, file: Path) -> list[Reply]:
        """Read saved answers: the evaluation tool's folder of four-column files, or our own samples.

        Args:
            file: A folder with ``<task>.txt`` for every task; one such file if there is one task; or our samples.

        Raises:
            ValueError: A file is malformed, or its questions are not ours.
        """
        if file.is_dir() or file.suffix == ".txt":
            return matched(self.questions(), read_results(file, self.tasks, self.questions()), file)
        return matched(self.questions(), read_answers(file), file)

    def verdicts(self, questions: Sequence[Question], replies: Sequence[Reply]) -> list[dict[str, Any]]:
        """Read each reply: ``answer`` is yes, no or other."""
        answers = [parse_answer(reply.text) for reply in replies]
        return [
            {"answer": answer, "correct": answer == question.truth}
            for question, answer in zip(questions, answers, strict=True)
        ]

    def tally(self, questions: Sequence[Question], verdicts: Sequence[dict[str, Any]]) -> Tensor:
        """Sum what ``TASK`` names of each task, then questions and right answers of each image.

        Images have sums of their own, so that the two questions of one may lie in different shares.
        """
        start = len(self.tasks) * len(TASK)
        total = torch.zeros(start + 2 * len(self._places), dtype=torch.float64)
        for question, verdict in zip(questions, verdicts, strict=True):
            task = self.tasks.index(question.kind) * len(TASK)
            image = start + 2 * self._places[question.kind, question.image]
            correct = float(verdict["correct"])
            counts = (1.0, correct, float(verdict["answer"] == "other"))
            total[task : task + len(TASK)] += torch.tensor(counts, dtype=torch.float64)
            total[image : image + 2] += torch.tensor((1.0, correct), dtype=torch.float64)
        return total

    def report(self, total: Tensor) -> dict[str, float]:
        """Return score, accuracy, accuracy+ and counts of each task, and the sums over tasks; 0 where nothing is."""
        total = total.cpu()
        start = len(self.tasks) * len(TASK)
        metrics: dict[str, float] = {}
        for task, cells in zip(self.tasks, total[:start].view(len(self.tasks), len(TASK)).tolist(), strict=True):
            n, correct, unparsed = cells
            images = [total[start + 2 * place :][:2].tolist() for key, place in self._places.items() if key[0] == task]
            both = sum(right == PAIR for _, right in images)
            accuracy = correct / max(n, 1)
            plus = both / max(sum(asked > 0 for asked, _ in images), 1)
            rates = {"score": 100 * accuracy + 100 * plus, "accuracy": accuracy, "accuracy_plus": plus}
            metrics |= {f"{task}/{key}": value for key, value in (rates | {"n": n, "n_unparsed": unparsed}).items()}
        whole = {key: sum(metrics[f"{task}/{key}"] for task in self.tasks) for key in ("score", "n", "n_unparsed")}
        return whole | metrics

    @cached_property
    def _places(self) -> dict[tuple[str, Path], int]:
        """A number for every image of every task: some images serve in several."""
        keys = dict.fromkeys((question.kind, question.image) for question in self.questions())
        return {key: place for place, key in enumerate(keys)}

    @cached_property
    def _questions(self) -> tuple[Question, ...]:
        questions = [question for task in self.tasks for question in read_task(self.folder, task, self.images)]
        return subset(questions, self.num_images, self.seed, self.name)
