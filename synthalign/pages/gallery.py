"""Writes the gallery: what a synthesis drew, said, chose and refused, as one file that needs nothing else.

The page holds an index of all rows, which it filters and sorts, and after it a block of data for each question and
each picture, which it reads when they come into view. Both go to the disk as they are read.
"""

import re
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import yaml
from tqdm import tqdm

from synthalign.pages.joined import Joined, Question
from synthalign.pages.landings import TABLE_SUFFIX, Chain, Landing, find, halvings, num_rows
from synthalign.pages.markup import block, csp_hash, data, fill, own, text
from synthalign.pages.pictures import Budget, page_of, written
from synthalign.pages.written import Written, whole

FIELDS = (
    *("id", "picture", "question", "category", "reason", "pending", "margin", "words", "chosen", "rejected"),
    *("responders", "refused", "truncated"),
)
"""Of a row of the index. Responders, reasons and categories are numbers of names; words are those of both sides."""

SCRIPTS = ("page.js", "charts.js", "choice.js", "list.js", "words.js", "detail.js", "moves.js")
"""Of the page, one after the other."""

STYLES = ("page.css", "gallery.css")

MAX_CATEGORIES = 200
"""Ids that name more kinds than this name no kinds."""

MB = 1_000_000


def write(run: Path, out: Path | None = None, *, max_mb: float = 100.0) -> Written:
    """Write the gallery of a store, of a landing, of a table or of a training run.

    Args:
        run: A store's folder, a landing's in it, a .table file, or the folder of a training run.
        out: The file to write; by default gallery.html in the folder, or beside the table.
        max_mb: Largest size of the file, megabytes. Images are made smaller to keep to it.

    Raises:
        ValueError: There is nothing to show, it is damaged, or its texts alone are larger than ``max_mb``.
        RuntimeError: The disk is full, or the file cannot be written for another reason.
    """
    chain = find(run)
    out = out or (run / "gallery.html" if run.is_dir() else run.with_suffix(".html"))
    left_out = run / "dropped.jsonl" if run.is_dir() else None
    with (
        whole(out, sqlite3.OperationalError) as part,
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".gallery-") as folder,
    ):
        page = _Page(chain, Path(folder), max_mb * MB)
        page.write(part, _title(run), left_out)
    return Written(out, page.headline(), page.notes())


def _title(run: Path) -> str:
    """Name a run by the end of its path: demo/pairs."""
    path = run.resolve()
    return f"{path.parent.name}/{path.name.removesuffix(TABLE_SUFFIX)}"


class _Page:
    """One gallery on its way to the disk."""

    def __init__(self, chain: Chain, folder: Path, max_bytes: float) -> None:
        self.chain, self.folder, self.max_bytes = chain, folder, max_bytes
        self.names: dict[str, dict[str, int]] = {"responders": {}, "reasons": {}, "categories": {}}
        self.outcomes: Counter[str] = Counter()
        self.note = ""

    def write(self, path: Path, title: str, left_out: Path | None) -> None:
        """Write the page."""
        joined = Joined(self.chain, self.folder, left_out)
        try:
            self._questions(joined)
            self._pictures(joined)
        finally:
            joined.close()
        style, script = "".join(map(own, STYLES)), "".join(map(own, SCRIPTS))
        parts: dict[str, str | Callable[[IO[str]], object]] = {
            "policy": text(
                f"default-src 'none'; img-src data:; style-src {csp_hash(style)}; script-src {csp_hash(script)}"
            ),
            "title": text(title),
            "headline": text(self.headline()),
            "notes": "".join(f"<p>{text(line)}</p>\n" for line in self.notes()),
            "landed": self._landed(),
            "recipes": self._recipes(),
            "names": block("names", data({"fields": FIELDS} | {key: list(names) for key, names in self.names.items()})),
            "style": style,
            "script": script,
            "index": lambda out: self._copy("index", out),
            "data": lambda out: self._copy("data", out),
        }
        with path.open("w", encoding="utf-8", newline="\n") as out:
            fill(own("gallery.html"), parts, out)

    def _open(self, name: str, mode: str) -> IO[str]:
        return (self.folder / name).open(mode, encoding="utf-8", newline="\n")

    def _copy(self, name: str, out: IO[str]) -> None:
        with self._open(name, "r") as source:
            shutil.copyfileobj(source, out)

    def _questions(self, joined: Joined) -> None:
        """Write the index of the rows, and each row's data."""
        with self._open("index", "w") as index, self._open("data", "w") as body:
            index.write('<script type="application/json" id="rows">[')
            for number, question in enumerate(tqdm(joined.questions(), desc="questions", unit="")):
                index.write((",\n" if number else "") + data(self._row(question)))
                body.write(block(f"r{number}", data(self._details(question))))
                outcome = question.pending or (f"dropped: {question.dropped}" if question.dropped else "pairs")
                self.outcomes[outcome] += 1
            index.write("]</script>\n")

    def _pictures(self, joined: Joined) -> None:
        """Write the pictures' data, in what room the texts leave, and the index of their scores."""
        taken = sum((self.folder / name).stat().st_size for name in ("index", "data"))
        # The page itself, and what the index of the pictures will take.
        taken += sum(len(own(name)) for name in ("gallery.html", *STYLES, *SCRIPTS))
        taken += 64 * joined.num_pictures + 20_000
        budget = Budget(self.max_bytes - taken, joined.num_pictures, joined.sample(), page_of)
        if (least := taken + budget.least) > self.max_bytes:
            raise ValueError(
                f"{self.outcomes.total()} questions take {least / MB:.1f} MB without any image: raise --max-mb "
                f"{self.max_bytes / MB:g}"
            )
        shown = tqdm(joined.pictures(), desc="pictures", unit="", total=joined.num_pictures)
        with self._open("index", "a") as index, self._open("data", "a") as body:
            index.write('<script type="application/json" id="pictures">[')
            for number, (picture, page) in enumerate(written(shown, budget)):
                index.write((",\n" if number else "") + data([_short(one["score"]) for one in picture.candidates]))
                body.write(block(f"i{picture.number}", page))
            index.write("]</script>\n")
        self.note = budget.note()

    def _number(self, kind: str, name: str | None) -> int | None:
        """Return a name's number, a new one for a new name."""
        return None if name is None else self.names[kind].setdefault(name, len(self.names[kind]))

    def _category(self, question_id: str) -> int | None:
        """Name the kind by which an id begins: kitchen of kitchen-0001/2."""
        found = re.match(r"(.+?)[-_/ ]?\d+(/\d+)?$", question_id)
        known = self.names["categories"]
        if found is None or (found[1] not in known and len(known) >= MAX_CATEGORIES):
            return None
        return self._number("categories", found[1])

    def _row(self, question: Question) -> list[Any]:
        """Return a row of the index, in the order of FIELDS."""
        sides = [
            None if place is None else question.candidates[place] for place in (question.chosen, question.rejected)
        ]
        responders = dict.fromkeys(one.get("responder") for one in question.candidates)
        refused = dict.fromkeys(one.get("refused") for one in question.candidates if one.get("refused"))
        return [
            question.id,
            question.picture,
            question.question[:160],
            self._category(question.id),
            self._number("reasons", question.dropped),
            question.pending or 0,
            _short(question.margin),
            [len(one["text"].split()) for one in sides if one is not None],
            *(None if one is None else self._number("responders", one.get("responder")) for one in sides),
            [self._number("responders", name) for name in responders if name is not None],
            [self._number("reasons", name) for name in refused],
            int(any(one.get("truncated") for one in question.candidates)),
        ]

    def _details(self, question: Question) -> dict[str, Any]:
        """Return what the index leaves out; what is nothing is left out here."""
        candidates = []
        for one in question.candidates:
            shown = one | {
                "responder": self._number("responders", one.get("responder")),
                "score": _short(one.get("score")),
            }
            shown["scores"] = [part | {"score": _short(part["score"])} for part in one.get("scores") or []]
            shown["truncated"] = 1 if one.get("truncated") else None
            candidates.append({key: value for key, value in shown.items() if value not in (None, [])})
        return {
            "prompt": question.prompt,
            "question": question.question,
            "chosen": question.picked[0] if question.picked else question.chosen,
            "rejected": question.picked[1] if question.picked else question.rejected,
            "detail": question.detail,
            "candidates": candidates,
        }

    def headline(self) -> str:
        """Say in one line what became of the questions."""
        dropped = {name: count for name, count in self.outcomes.most_common() if name.startswith("dropped: ")}
        said = [f"{self.outcomes['pairs']} pairs of {self.outcomes.total()} questions"]
        if dropped:
            reasons = ", ".join(f"{name.removeprefix('dropped: ')} {count}" for name, count in dropped.items())
            said.append(f"{sum(dropped.values())} dropped ({reasons})")
        said += [
            f"{count} {name}" for name, count in self.outcomes.most_common() if name != "pairs" and name not in dropped
        ]
        return "; ".join(said)

    def notes(self) -> list[str]:
        """Say what a person must know to read the page rightly."""
        said = []
        if self.chain.table is None:
            last = self.chain.landings[-1]
            said.append(
                f"This run is unfinished: it has come as far as {last.folder.name}. The page shows what has landed."
            )
        elif self.chain.others:
            said.append(f"The newest of {self.chain.others + 1} tables: {self.chain.table}. Name another to see it.")
        if lost := [stage for stage in ("draw", "rank") if self.chain.table and not self.chain.of(stage)]:
            said.append(f"There is no landing of {' and '.join(lost)} any more: the losing images are not shown.")
        return [*said, self.note] if self.note else said

    def _landed(self) -> str:
        """Return the rows of the table of landings."""
        lines = []
        for landing in self.chain.landings:
            files = self.chain.pair_files() if landing.stage == "pair" else landing.files()
            halved = sum(bool(halvings(path)) for path in files)
            cells = (landing.folder.name, _made_by(landing), sum(map(num_rows, files)), len(files), halved or "")
            lines.append("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in cells) + "</tr>\n")
        return "".join(lines)

    def _recipes(self) -> str:
        """Return the recipes, each to be unfolded."""
        return "".join(
            f"<details><summary>{text(landing.folder.name)} <span>{text(_made_by(landing))}</span></summary>"
            f"<pre>{text(yaml.safe_dump(landing.recipe, sort_keys=False, allow_unicode=True))}</pre></details>\n"
            for landing in self.chain.landings
        )


def _made_by(landing: Landing) -> str:
    """Name the classes of a recipe's parts, and the model where it is named."""
    parts = [part for part in landing.recipe.values() if isinstance(part, dict) and "class" in part]
    named = []
    for part in parts:
        model = part.get("model")
        named.append(part["class"].rpartition(".")[2] + (f" {model}" if isinstance(model, str) else ""))
    return ", ".join(named)


def _short(score: float | None) -> float | None:
    """Keep as many digits as anyone reads."""
    return None if score is None else float(f"{score:.5g}")
