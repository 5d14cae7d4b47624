"""Lets a language model write prompts, category by category in turn, until there are enough of each.

An attempt is keyed by (seed, category, number of the attempt): what is asked, and the noise of the reply. Replies that
cannot be read, or that repeat an earlier prompt, are dropped with their reason, and the next attempt takes their place.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from synthalign.prompts.form import CATEGORIES, Scene, ask, read
from synthalign.prompts.journal import NAME, Journal, check_folder
from synthalign.prompts.repeats import Repeats
from synthalign.store import recipe_of, seed_of, write_atomically
from synthalign.types import Drop, Reply

CHUNK = 64
"""Attempts between two savings."""

HOPELESS = 256
"""Attempts after which a writer that no prompt came of is given up."""


class Writer(Protocol):
    """Writes text: ``vlm.LLM`` and ``clients.ServedLLM`` do."""

    def complete(self, prompts: Sequence[str], seeds: Sequence[int] | None = None) -> list[Reply]:
        """Reply to each prompt: greedily, or, given one seed per row, by sampling."""
        ...

    def release(self) -> None:
        """Free the memory of the weights."""
        ...


class Written(NamedTuple):
    """What became of a run: the prompts file, how many prompts each category lacks, and what was dropped by reason."""

    path: Path
    num_prompts: int
    missing: dict[str, int]
    dropped: Counter[str]

    def __str__(self) -> str:
        """Say it in one line."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.dropped.most_common())
        text = f"{self.num_prompts} prompts in {self.path}; dropped {self.dropped.total()}"
        text += f" ({reasons})" if reasons else ""
        lacking = ", ".join(f"{category} {count}" for category, count in self.missing.items())
        return text + (f"; still missing: {lacking} (raise tries to go on)" if lacking else "")


def write(
    writer: Writer,
    out: Path,
    *,
    categories: Sequence[str] = tuple(CATEGORIES),
    per_category: int = 100,
    num_questions: int = 1,
    seed: int = 0,
    tries: int = 4,
) -> Written:
    """Write ``prompts.jsonl`` in a folder, or go on with it: a row each, {"id", "category", "prompt", "question"}.

    Killed and started again it ends with the same bytes as if undisturbed, as long as a reply depends on its own
    request and seed alone. Asked for more prompts later it keeps those there are, and adds to them.

    Args:
        writer: Writes the scenes.
        out: Folder, made if need be. ``attempts.jsonl`` beside the prompts holds what was dropped, and why.
        categories: Which of ``CATEGORIES`` to write about.
        per_category: Prompts wanted of each.
        num_questions: About each scene; more than one are the row's ``questions``.
        seed: Of everything drawn.
        tries: Attempts allowed for each prompt that is wanted, on average over a category.

    Raises:
        ValueError: A setting cannot be meant, the folder holds something else, or no reply could be used.
        RuntimeError: The writer's server failed for good, or the disk.
    """
    _check(categories, per_category=per_category, num_questions=num_questions, tries=tries)
    check_folder(out)
    recipe = {"writer": recipe_of(writer), "seed": seed, "questions": num_questions, "chunk": CHUNK}
    journal = Journal(out, recipe)
    path = out / "prompts.jsonl"
    _check_untouched(path, journal.rows)
    known, kept = Repeats(), Counter(row["category"] for row in journal.rows)
    for row in journal.rows:
        known.add(row["id"], row["prompt"])
    bar = tqdm(total=per_category * len(categories), desc="prompts", unit="prompt")
    bar.update(sum(min(kept[category], per_category) for category in categories))
    try:
        while asked := _next(categories, per_category, tries, kept, journal.attempts):
            if not journal.rows and journal.attempts.total() >= HOPELESS:
                break
            replies = writer.complete(
                [ask(category, attempt, seed, num_questions) for category, attempt in asked],
                [seed_of(seed, "write", category, attempt) for category, attempt in asked],
            )
            rows, drops = _sort(asked, replies, num_questions, known, kept)
            journal.add(rows, drops, Counter(category for category, _ in asked))
            bar.set_postfix_str(f"dropped {journal.dropped.total()}", refresh=False)
            bar.update(len(rows))
    finally:
        bar.close()
        writer.release()
        _land(path, journal.rows)
    if not journal.rows:
        reasons = ", ".join(f"{reason} {count}" for reason, count in journal.dropped.most_common())
        raise ValueError(
            f"none of {journal.attempts.total()} replies could be used ({reasons}): they are in {out / NAME}; "
            "a model that follows instructions is needed"
        )
    missing = {category: per_category - kept[category] for category in categories if kept[category] < per_category}
    return Written(path, len(journal.rows), missing, journal.dropped)


def _next(
    categories: Sequence[str], per_category: int, tries: int, kept: Counter[str], attempts: Counter[str]
) -> list[tuple[str, int]]:
    """List the attempts of the next chunk, the categories in turn; none when all have enough, or had tries enough."""
    room = {
        category: min(per_category - kept[category], tries * per_category - attempts[category])
        for category in categories
    }
    turns = range(min(CHUNK, max(room.values())))
    return [
        (category, attempts[category] + turn) for turn in turns for category in categories if turn < room[category]
    ][:CHUNK]


def _sort(
    asked: Sequence[tuple[str, int]],
    replies: Sequence[Reply],
    num_questions: int,
    known: Repeats,
    kept: Counter[str],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Turn replies into rows and drops; the rows are added to what is known and kept."""
    rows, drops = [], []
    for (category, attempt), reply in zip(asked, replies, strict=True):
        outcome = read(reply, num_questions)
        if isinstance(outcome, Scene):
            outcome = known.find(outcome.prompt) or outcome
        if isinstance(outcome, Drop):
            drops.append({"category": category, "attempt": attempt, **outcome._asdict(), "reply": reply.text})
            continue
        kept[category] += 1
        rows.append(_row(category, kept[category], outcome))
        known.add(rows[-1]["id"], outcome.prompt)
    return rows, drops


def _row(category: str, number: int, scene: Scene) -> dict[str, Any]:
    several = {"questions": list(scene.questions)}
    asked = several if len(scene.questions) > 1 else {"question": scene.questions[0]}
    return {"id": f"{category}-{number:04d}", "category": category, "prompt": scene.prompt, **asked}


def _land(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = _lines(rows)
    if not rows or (path.exists() and path.read_bytes().startswith(lines)):  # all there, perhaps by a later run
        return
    write_atomically(path, lines)


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _check(categories: Sequence[str], **numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be >= 1, got {number}")
    if unknown := [category for category in categories if category not in CATEGORIES]:
        raise ValueError(f"no category {', '.join(unknown)}: there are {', '.join(CATEGORIES)}")
    if not categories or len(set(categories)) < len(categories):
        raise ValueError(f"name each category once, and at least one, got {list(categories)}")


def _check_untouched(path: Path, rows: list[dict[str, Any]]) -> None:
    """Refuse to write over prompts that somebody else wrote, or changed."""
    if path.exists() and not _lines(rows).startswith(path.read_bytes()):
        raise ValueError(f"{path} was not written by this command, or was changed since: name another folder")
