"""Joins the landings behind a table into questions and pictures, one at a time.

What has to be looked up across shards lies in a database on the disk: memory does not grow with the number of rows.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from synthalign.pages.landings import Chain, Landing, rows

PENDING = {"draw": "not answered yet", "answer": "not scored yet", "score": "not paired yet"}
"""What an unfinished run still owes the rows that have come as far as a stage."""


class Question(NamedTuple):
    """One question, everything that was said, and what became of it.

    ``candidates`` hold responder, text, truncated, score, scores (by part of a mixture), refused and detail;
    ``chosen`` and ``rejected`` are places among them, ``picked`` those of a pair that a gate may have dropped.
    ``dropped`` says why there is no pair, ``pending`` what the run still owes. ``picture`` is the number of the image.
    """

    id: str
    picture: int
    prompt: str
    question: str
    candidates: list[dict[str, Any]]
    chosen: int | None = None
    rejected: int | None = None
    picked: tuple[int, int] | None = None
    margin: float | None = None
    dropped: str | None = None
    detail: str = ""
    pending: str | None = None


class Picture(NamedTuple):
    """All images drawn of one prompt. Candidates hold seed, guidance_scale, score and image, encoded."""

    number: int
    candidates: list[dict[str, Any]]
    best: int | None


class Joined:
    """What the landings of a chain say together.

    Args:
        chain: The landings.
        folder: Where the database may lie while this is used.
        left_out: A training run's dropped.jsonl: pairs that it did not train on, and why.
    """

    def __init__(self, chain: Chain, folder: Path, left_out: Path | None = None) -> None:
        self.chain = chain
        self.database = sqlite3.connect(folder / "joined.sqlite", isolation_level=None)
        self.database.executescript(
            """
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
            CREATE TABLE pictures (key TEXT PRIMARY KEY, number INTEGER, shown INTEGER DEFAULT 0);
            CREATE TABLE ranks (key TEXT, part INTEGER, scores TEXT, best INTEGER, PRIMARY KEY (key, part));
            CREATE TABLE prompts (id TEXT PRIMARY KEY, key TEXT, prompt TEXT);
            CREATE TABLE done (id TEXT PRIMARY KEY);
            CREATE TABLE begun (id TEXT PRIMARY KEY);
            CREATE TABLE answers (id TEXT, place INTEGER, row TEXT, PRIMARY KEY (id, place));
            CREATE TABLE left_out (id TEXT PRIMARY KEY, reason TEXT, detail TEXT);
            BEGIN;
            """
        )
        self.num_pictures = 0
        self._left_out(left_out)

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    def questions(self) -> Iterator[Question]:
        """Give every question: those of the pairs first, then what an unfinished run has not paired yet."""
        for path in self.chain.pair_files():
            for row in rows(path, _PAIR_COLUMNS):
                if self._is_new(row["id"], row["image_id"]):
                    yield self._paired(row)
        if self.chain.table is None:
            yield from self._unfinished()

    def pictures(self) -> Iterator[Picture]:
        """Give the images of the questions given so far; where what was drawn is gone, the best image alone."""
        self._read_ranks()
        for path, read in self._sources():
            for row in read(path):
                if (number := self._asked_for(row["key"])) is not None:
                    self._do("UPDATE pictures SET shown = 1 WHERE key = ?", row["key"])
                    yield self._picture(number, row)

    def sample(self, number: int = 24) -> list[Picture]:
        """Return some of the pictures, from all over the table, without giving them."""
        sources = self._sources()
        sources = sources[:: max(1, len(sources) // number)]
        each = max(1, number // max(1, len(sources)))
        wanted = (row for path, read in sources for row in islice(filter(self._wanted, read(path)), each))
        return [self._picture(0, row) for row in islice(wanted, number)]

    def _sources(self) -> list[tuple[Path, Callable[[Path], Iterator[dict[str, Any]]]]]:
        """List the files that hold images, those that hold all candidates first, and how their rows are read."""

        def drawn(path: Path) -> Iterator[dict[str, Any]]:
            for row in rows(path, ["key", "id", "candidates"]):
                yield {"key": _key(row), "candidates": row["candidates"]}

        def picked(path: Path) -> Iterator[dict[str, Any]]:
            for row in rows(path, ["key", "image"]):
                yield {"key": row["key"], "candidates": [{"image": row["image"]}]}

        def paired(path: Path) -> Iterator[dict[str, Any]]:
            for row in rows(path, ["image_key", "image_id", "image"]):
                if content := (row.get("image") or {}).get("bytes"):
                    yield {"key": row.get("image_key") or row["image_id"], "candidates": [{"image": content}]}

        return [
            *((path, drawn) for landing in self.chain.of("draw") for path in landing.files()),
            *((path, picked) for landing in self.chain.of("pick") for path in landing.files()),
            *((path, paired) for path in self.chain.pair_files()),
        ]

    def _do(self, statement: str, *values: Any) -> Any:  # noqa: ANN401 - a row of the database, or None
        return self.database.execute(statement, values).fetchone()

    def _left_out(self, path: Path | None) -> None:
        if path is not None and path.is_file():
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        row = json.loads(line)
                        values = row["id"], row["reason"], row["detail"]
                    except (ValueError, TypeError, KeyError):
                        raise ValueError(f"{path}, line {number}: no pair that a training run left out") from None
                    self._do("INSERT OR REPLACE INTO left_out VALUES (?, ?, ?)", *values)

    def _is_new(self, question_id: str, image_id: str) -> bool:
        """Whether a question comes for the first time; an unfinished run may hold a row in several shards."""
        self._do("INSERT OR IGNORE INTO begun VALUES (?)", image_id)
        return bool(self.database.execute("INSERT OR IGNORE INTO done VALUES (?)", (question_id,)).rowcount)

    def _number(self, key: str) -> int:
        """Return the number of a picture, a new one for a new key."""
        known = self._do("SELECT number FROM pictures WHERE key = ?", key)
        if known:
            return int(known[0])
        self._do("INSERT INTO pictures (key, number) VALUES (?, ?)", key, self.num_pictures)
        self.num_pictures += 1
        return self.num_pictures - 1

    def _asked_for(self, key: str) -> int | None:
        """Return the number of a picture that is asked for and has not been given yet."""
        found = self._do("SELECT number FROM pictures WHERE key = ? AND shown = 0", key)
        return int(found[0]) if found else None

    def _wanted(self, row: dict[str, Any]) -> bool:
        return self._asked_for(row["key"]) is not None

    def _paired(self, row: dict[str, Any]) -> Question:
        dropped, detail = row.get("dropped"), row.get("detail") or ""
        if dropped is None and (left := self._do("SELECT reason, detail FROM left_out WHERE id = ?", row["id"])):
            dropped, detail = left
        candidates = row.get("candidates") or []
        places: dict[str, int] = {}
        for side in ("chosen", "rejected"):
            if row.get(side) is None:
                continue
            said = {"responder": row.get(f"{side}_responder"), "text": row[side], "score": row.get(f"{side}_score")}
            matches = [n for n, one in enumerate(candidates) if all(one.get(key) == said[key] for key in said)]
            if not matches:
                candidates.append(said)
            places[side] = matches[0] if matches else len(candidates) - 1
        scores = row.get("chosen_score"), row.get("rejected_score")
        return Question(
            id=row["id"],
            picture=self._number(row.get("image_key") or row["image_id"]),
            prompt=row.get("prompt") or "",
            question=row["question"],
            candidates=candidates,
            chosen=places.get("chosen"),
            rejected=places.get("rejected"),
            picked=None if row.get("picked") is None else (row["picked"][0], row["picked"][1]),
            margin=None if scores[0] is None or scores[1] is None else scores[0] - scores[1],
            dropped=dropped,
            detail=detail,
        )

    def _unfinished(self) -> Iterator[Question]:
        """Give what has landed beyond the pairs, the furthest first."""
        for landing in self.chain.of("draw"):
            for path in landing.files():
                for row in rows(path, ["key", "id", "prompt"]):
                    self._do("INSERT OR REPLACE INTO prompts VALUES (?, ?, ?)", row["id"], _key(row), row["prompt"])
        for stage, column in (("score", "candidates"), ("answer", "responses")):
            self.database.execute("DELETE FROM answers")
            for place, landing in enumerate(self.chain.of(stage)):
                reward = kind_of(landing, "response_reward")
                for path in landing.files():
                    for row in rows(path):
                        said = [{"responder": row.get("responder")} | one for one in row.pop(column)]
                        if stage == "score":
                            said = [one | {"scores": [{"reward": reward, "score": one["score"]}]} for one in said]
                        text = json.dumps({**row, "candidates": said})
                        self._do("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", row["id"], place, text)
            yield from self._pending(stage)
        for image_id, key, prompt in self.database.execute(
            "SELECT id, key, prompt FROM prompts WHERE id NOT IN (SELECT id FROM begun) ORDER BY id"
        ):
            yield Question(image_id, self._number(key), prompt, "", [], pending=PENDING["draw"])

    def _pending(self, stage: str) -> Iterator[Question]:
        parts: list[dict[str, Any]] = []
        found = self.database.execute(
            "SELECT row FROM answers WHERE id NOT IN (SELECT id FROM done) ORDER BY id, place"
        )
        for (text,) in found:
            row = json.loads(text)
            if parts and parts[0]["id"] != row["id"]:
                yield self._open(stage, parts)
                parts = []
            parts.append(row)
        if parts:
            yield self._open(stage, parts)

    def _open(self, stage: str, parts: list[dict[str, Any]]) -> Question:
        """Make a question of its rows in the landings of one stage."""
        first = parts[0]
        key, prompt = self._do("SELECT key, prompt FROM prompts WHERE id = ?", first["image_id"]) or ("", "")
        self._is_new(first["id"], first["image_id"])
        candidates = first["candidates"]
        if stage == "answer":
            candidates = [one for row in parts for one in row["candidates"]]
        elif len(parts) > 1:  # the rewards of a mixture score the same candidates, each in a landing of its own
            columns = zip(*(row["candidates"] for row in parts), strict=True)
            candidates = [
                one | {"score": None, "scores": [part["scores"][0] for part in (one, *others)]}
                for one, *others in columns
            ]
        picture = self._number(key)
        return Question(first["id"], picture, prompt, first["question"], candidates, pending=PENDING[stage])

    def _read_ranks(self) -> None:
        """Note the scores of the images: of the whole reward, and of each part of a mixture."""
        picks, ranks = self.chain.of("pick"), self.chain.of("rank")
        names = {address: name for pick in picks for name, address in (pick.recipe.get("ranks") or {}).items()}
        for landing in [*picks, *ranks]:
            part = WHOLE if landing in picks else names.get(landing.address) or kind_of(landing, "image_reward")
            for path in landing.files():
                for row in rows(path, ["key", "id", "scores", "best"]):
                    values = (_key(row), part, json.dumps(row["scores"]), row.get("best"))
                    self._do("INSERT OR IGNORE INTO ranks VALUES (?, ?, ?, ?)", *values)

    def _picture(self, number: int, row: dict[str, Any]) -> Picture:
        """Put the images' scores beside them; the best image alone is all that may be left."""
        candidates = row["candidates"]
        by_part, best = {}, None
        for part, scores, place in self.database.execute(
            "SELECT part, scores, best FROM ranks WHERE key = ? ORDER BY part", (row["key"],)
        ):
            by_part[part] = json.loads(scores)
            best = place if part == WHOLE else best
        if "seed" not in candidates[0] and best is not None:
            by_part, best = {part: [scores[best]] for part, scores in by_part.items()}, 0
        whole = by_part.pop(WHOLE, None)
        if len(by_part) == 1:  # a reward that is no mixture
            [alone] = by_part.values()
            whole, by_part = whole or alone, {}
        for place, candidate in enumerate(candidates):
            candidate["score"] = whole[place] if whole else None
            candidate["scores"] = [{"reward": part, "score": scores[place]} for part, scores in by_part.items()]
        return Picture(number, candidates, best)


WHOLE = ""
"""Stands for the whole reward where its parts have names."""


def kind_of(landing: Landing, part: str) -> str:
    """Return the class of a part that made a landing, without its module."""
    described = landing.recipe.get(part)
    return str(described.get("class", part)).rpartition(".")[2] if isinstance(described, dict) else str(described)


_PAIR_COLUMNS = [
    *(
        "id",
        "image_id",
        "image_key",
        "prompt",
        "question",
        "chosen",
        "rejected",
        "picked",
        "candidates",
        "dropped",
        "detail",
    ),
    *("chosen_score", "rejected_score", "chosen_responder", "rejected_responder"),
]
"""All but the image, which is read once for all questions about it."""


def _key(row: dict[str, Any]) -> str:
    return str(row.get("key") or row["id"])
