"""POPE: does the model see objects that are not there? Yes/no questions, half of them about absent objects.

Source: Li et al. 2023 (arXiv 2305.10355).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from synthalign.evals.legend import Legend
from synthalign.evals.pope.answers import replies_in
from synthalign.evals.pope.auc import BINS, auc, bin_of
from synthalign.evals.pope.reading import exact_answer, rates, says_yes, strict_answer
from synthalign.evals.pope.rows import PopeRow, check_ids, rows_in
from synthalign.evals.questions import image_of, subset
from synthalign.types import Question, Reply

COUNTS = ("tp", "fp", "tn", "fn", "unparsed", "strict_right", "inexact", "exact_right")
CELLS = len(COUNTS) + 2 * BINS
"""Of one split: the counts, the margins where the truth is yes, and where it is no."""


@dataclass(frozen=True, kw_only=True)
class POPE:
    """Polling-based object probing: accuracy, precision, recall, F1 and yes-ratio per split, and their means.

    The official parser gives these. Beside them, per split and in the mean:

    - ``strict_accuracy``: the share of right answers among the replies that hold yes or no and not both;
      ``n_unparsed`` counts the others.
    - ``exact_match``: the share of replies that are the right word and nothing else, lmms-eval's accuracy;
      ``n_inexact`` counts those that are neither yes nor no alone.
    - ``auc``, where every reply shows its margin: the area under the ROC curve of p(yes), which no drift towards yes or
      no can move.

    Args:
        files: One file per split, such as ``random: coco_pope_random.json``; JSON lines or one JSON array, of COCO,
            A-OKVQA, GQA or images of yours.
        images: Folder of the images that the files name, or that a dataset's are written into, each once; null: they
            are not at hand, which is enough to score saved answers.
        dataset: Instead of ``files``: a dataset with its images inside, on the hub (``lmms-lab/POPE``) or as parquet
            here, a file or a folder; its splits are told apart by the column ``category``.
        suffix: Put after every question, as LLaVA does.
        max_new_tokens: Length limit of a reply, tokens.
        num_images: Ask about this many images only, drawn with ``seed``; all by default.
        seed: Which images ``num_images`` draws.
        name: Prefix of the metrics.
    """

    files: dict[str, Path] | None = None
    images: Path | None
    dataset: str | None = None
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
        *(Legend(f"*/{key}", "high", percent=True, headline=False) for key in ("precision", "recall", "f1")),
        Legend("*/yes_ratio", percent=True, headline=False),
        *(Legend(f"*/{key}", "high", percent=True, headline=False) for key in ("strict_accuracy", "exact_match")),
        Legend("*/auc", "high", headline=False),
        *(Legend(key, "low", headline=False) for key in ("*/n_unparsed", "*/n_inexact", "n_inexact")),
        *(Legend(key, headline=False) for key in ("*/n", "n")),
    )

    def __post_init__(self) -> None:
        if bool(self.files) == bool(self.dataset):
            raise ValueError(f"{self.name}: name files, one for each split, or a dataset, and not both")
        self._check_splits(self.files or ())

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in order; those of a dataset are read from it."""
        return tuple(self.files or self._rows)

    def questions(self) -> Sequence[Question]:
        """Return all questions, split after split, as the source has them.

        Raises:
            ValueError: A file, a row or an image is not as it should be; the message names it.
        """
        return self._questions

    def about(self) -> dict[str, str]:
        """Name the parser of the headline figures."""
        return {"parser": "official: No, no or not in the first sentence means no, everything else yes"}

    def replies_in(self, files: Mapping[str, Path]) -> list[Reply]:
        """Read answers that were saved before, in the order of the questions.

        Args:
            files: Of each split, its answers: our own samples, lines of ``question_id`` and ``text`` or ``answer``, or
                of ``question`` and ``answer`` in the questions' order, as the authors' are. One file may be given for
                several splits if its ids hold the split, or each of its rows the question, as LLaVA's do. Ids begin
                again in every split, so they cannot tell whether a file is of the split it is given for; rows that
                repeat their question or image are checked.

        Raises:
            ValueError: The answers do not belong to the questions one to one; the message says which.
        """
        asked = {split: [one for one in self.questions() if one.kind == split] for split in self.splits}
        return replies_in(files, asked, self.suffix)

    def verdicts(self, questions: Sequence[Question], replies: Sequence[Reply]) -> list[dict[str, Any]]:
        """Read each reply: officially, strictly, and as lmms-eval does.

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
                    "exact_answer": exact_answer(reply.text),
                    "correct": answer == question.truth,
                    "yes_margin": reply.yes_margin,
                }
            )
        return rows

    def tally(self, questions: Sequence[Question], verdicts: Sequence[dict[str, Any]]) -> Tensor:
        """Sum counts and binned margins per split, shape (splits * CELLS,)."""
        first_cell = {split: index * CELLS for index, split in enumerate(self.splits)}
        hits = []
        for question, verdict in zip(questions, verdicts, strict=True):
            truth, margin = question.truth, verdict["yes_margin"]
            found = [("t" if verdict["answer"] == truth else "f") + ("p" if verdict["answer"] == "yes" else "n")]
            for answer, unread, right in (("strict", "unparsed", "strict_right"), ("exact", "inexact", "exact_right")):
                said = verdict[f"{answer}_answer"]
                found += [unread] if said is None else [right] if said == truth else []
            cells = [COUNTS.index(one) for one in found]
            if margin is not None:
                cells.append(len(COUNTS) + (0 if truth == "yes" else BINS) + bin_of(margin))
            hits += [first_cell[question.kind] + cell for cell in cells]
        return torch.bincount(torch.tensor(hits, dtype=torch.long), minlength=CELLS * len(self.splits)).double()

    def report(self, total: Tensor) -> dict[str, float]:
        """Return ``split/metric`` for every split, ``mean/metric`` over the splits that were asked, and the counts."""
        metrics: dict[str, float] = {}
        asked: list[dict[str, float]] = []
        for split, cells in zip(self.splits, total.cpu().view(-1, CELLS), strict=True):
            count = dict(zip(COUNTS, cells.tolist(), strict=False))
            n = sum(count[outcome] for outcome in ("tp", "fp", "tn", "fn"))
            scores = rates(count["tp"], count["fp"], count["tn"], count["fn"])
            scores["strict_accuracy"] = count["strict_right"] / max(n - count["unparsed"], 1)
            scores["exact_match"] = count["exact_right"] / max(n, 1)
            positive, negative = cells[len(COUNTS) :].view(2, BINS)
            area = auc(positive, negative)
            if area is not None and float(cells[len(COUNTS) :].sum()) == n:
                scores["auc"] = area
            if n:
                asked.append(scores)
            counts = {"n": n, "n_unparsed": count["unparsed"], "n_inexact": count["inexact"]}
            metrics |= {f"{split}/{key}": value for key, value in (scores | counts).items()}
        for key in asked[0] if asked else (*rates(0, 0, 0, 0), "strict_accuracy", "exact_match"):
            if all(key in scores for scores in asked):
                metrics[f"mean/{key}"] = sum(scores[key] for scores in asked) / max(len(asked), 1)
        for key in ("n", "n_unparsed", "n_inexact"):
            metrics[key] = sum(metrics[f"{split}/{key}"] for split in self.splits)
        return metrics

    @cached_property
    def _questions(self) -> tuple[Question, ...]:
        folder = None if self.dataset else self.images
        questions = []
        paths: dict[str, Path] = {}
        for split, rows in self._rows.items():
            for row in rows:
                if row.image not in paths:
                    paths[row.image] = image_of(folder, row.image, row.where)
                text = row.text + self.suffix
                questions.append(Question(f"{split}/{row.number}", paths[row.image], text, split, row.label))
        asked = subset(questions, self.num_images, self.seed, self.name)
        return self._with_written_images(asked) if self.dataset and self.images else asked

    @cached_property
    def _rows(self) -> dict[str, list[PopeRow]]:
        if self.files:
            splits = {split: rows_in(file, split) for split, file in self.files.items()}
        else:
            from synthalign.evals.pope.hub import rows_of

            splits = rows_of(self._parquet)
            self._check_splits(splits)
        if not splits:
            raise ValueError(f"{self.name}: {self.dataset} holds no questions: there is not one row in it")
        for split, rows in splits.items():
            check_ids(rows, split)
        return splits

    @cached_property
    def _parquet(self) -> list[Path]:
        from synthalign.evals.pope.hub import parquet_of

        assert self.dataset is not None
        return parquet_of(self.dataset)

    def _with_written_images(self, asked: Sequence[Question]) -> tuple[Question, ...]:
        """Write the images that are asked about; the questions name them by the dataset's names so far."""
        from synthalign.evals.pope.hub import write_images

        assert self.images is not None
        paths = write_images(self._parquet, self.images, {str(question.image) for question in asked})
        return tuple(question._replace(image=paths[str(question.image)]) for question in asked)

    def _check_splits(self, splits: Iterable[str]) -> None:
        if bad := [split for split in splits if not split or "/" in split or split == "mean"]:
            raise ValueError(f"{self.name}: split {bad[0]!r} cannot be part of a metric's name; call it something else")
