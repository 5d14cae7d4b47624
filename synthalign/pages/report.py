"""Writes the report: what became of a run's model, as one file that needs nothing else.

Figures before and after, curves, bars by type, and every answer that changed, with its image. The page holds all
verdicts, so that it can set any evaluation against any other; texts and pictures are read when they come into view.
"""

import base64
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from synthalign.pages.markup import block, csp_hash, data, fill, own, text
from synthalign.pages.pictures import SIZES, Budget, Size, jpeg, written
from synthalign.pages.report_rows import RIGHT, UNJUDGED, WRONG, Row, Rows, read_rows
from synthalign.pages.report_run import Run, read_run
from synthalign.pages.written import Written, whole

FIELDS = ("id", "eval", "kind", "picture", "verdicts", "question")
"""Of a row of the index. Evaluations, kinds and pictures are numbers."""

SCRIPTS = (
    *("page.js", "words.js", "report_verdicts.js", "report_charts.js", "report_summary.js"),
    *("report_choice.js", "list.js", "report_detail.js", "moves.js"),
)
"""Of the page, one after the other."""

STYLES = ("page.css", "report.css")

MB = 1_000_000

NOTES_BYTES = 4000
"""Room for the notes, which are known last."""

TEXT_SHARE = 0.5
"""Of the page's size, what texts may take at most; the rest is for images."""


def write(run: Path, out: Path | None = None, *, max_mb: float = 50.0) -> Written:
    """Write the report of a run.

    Args:
        run: The folder of a fit, a validate or a test, or the results.json in it.
        out: The file to write; by default report.html in the folder.
        max_mb: Largest size of the file, megabytes. Images are made smaller to keep to it, and if need be a sample
            of the answers is shown.

    Raises:
        ValueError: There is nothing to show, a file is damaged, or not even a sample fits into ``max_mb``.
        RuntimeError: The disk is full, or the file cannot be written for another reason.
    """
    folder, found = read_run(run)
    out = out or folder / "report.html"
    rows = read_rows(found, TEXT_SHARE * max_mb * MB)
    page = _Page(found, rows, folder)
    with whole(out) as part:
        page.write(part, max_mb * MB)
    return Written(out, page.headline(), page.notes())


class _Page:
    """One report on its way to the disk."""

    def __init__(self, run: Run, rows: Rows, folder: Path) -> None:
        self.run, self.rows, self.folder = run, rows, folder.resolve()
        self.lost: set[str] = set()
        self.image_note = ""

    def write(self, path: Path, max_bytes: float) -> None:
        """Write the page."""
        kinds: dict[str, int] = {}
        images: dict[str, int] = {}
        evals = {name: number for number, name in enumerate(self.run.evals)}
        index, bodies = [], []
        for number, row in enumerate(self.rows.rows):
            numbers = evals[row.eval], kinds.setdefault(row.kind, len(kinds))
            picture = images.setdefault(row.image, len(images))
            short = row.question.strip().replace("\n", " ")[:160]
            index.append(data([f"{row.eval}/{row.id}", *numbers, picture, row.verdicts, short]))
            bodies.append(block(f"r{number}", data(_details(row))))
        names = block("names", data({"fields": FIELDS, "kinds": list(kinds)}))
        names += block("run", data(self._told()))
        texts = f'{names}<script type="application/json" id="rows">[' + ",\n".join(index) + "]</script>\n"
        style, script = "".join(map(own, STYLES)), "".join(map(own, SCRIPTS))
        parts = {
            "policy": text(
                f"default-src 'none'; img-src data:; style-src {csp_hash(style)}; script-src {csp_hash(script)}"
            ),
            "title": text(self.run.title),
            "headline": text(self.headline()),
            "settings": "".join(
                f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>\n" for name, value in self.run.settings.items()
            ),
            "config": f"<pre>{text(self.run.config)}</pre>" if self.run.config else "<p>There is no config.yaml.</p>",
            "index": texts,
            "style": style,
            "script": script,
            "data": "".join(bodies),
        }
        taken = sum(len(part.encode()) for part in (own("report.html"), *parts.values())) + NOTES_BYTES
        parts["data"] += "".join(self._pictures(list(images), max_bytes, taken))
        parts["notes"] = "".join(f"<p>{text(line)}</p>\n" for line in self.notes())
        with path.open("w", encoding="utf-8", newline="\n") as out:
            fill(own("report.html"), parts, out)

    def _told(self) -> dict[str, Any]:
        """Return all that the page knows besides the answers."""
        times = set(self.rows.times)
        return {
            "stage": self.run.stage,
            "sittings": [
                {
                    "label": one.label,
                    "epoch": one.epoch,
                    "step": one.step,
                    "compared": number in times,
                    "metrics": one.metrics,
                }
                for number, one in enumerate(self.run.sittings)
            ],
            "evals": [
                {
                    "name": name,
                    "class": str(known.get("class_path", "")).rpartition(".")[2],
                    **{key: known.get(key) for key in ("questions", "distinct_questions")},
                    "about": known.get("about") or {},
                    "legend": known.get("legend") or {},
                    "silent": name in self.rows.silent,
                    "patterns": self.rows.patterns.get(name, {}),
                }
                for name, known in self.run.evals.items()
            ],
            "training": self.run.training,
        }

    def _pictures(self, images: list[str], max_bytes: float, taken: float) -> list[str]:
        """Return the pictures' blocks, in what room the texts leave."""
        numbered = [(number, path) for number, path in ((n, self._find(name)) for n, name in enumerate(images)) if path]
        self.lost |= {str(n) for n in set(range(len(images))) - {number for number, _ in numbered}}
        taken += 64 * len(images)
        sample = numbered[:: max(1, len(numbered) // 8)]
        budget = Budget(max_bytes - taken, len(numbered), sample, self._page_of)
        if taken > max_bytes:
            raise ValueError(
                f"{self.folder}: {len(self.rows.rows)} answers take {taken / MB:.1f} MB without any image: raise "
                f"--max-mb {max_bytes / MB:g}"
            )
        shown = tqdm(written(numbered, budget), desc="pictures", unit="", total=len(numbered))
        blocks = [block(f"i{number}", page) for (number, _), page in shown]
        smaller = [(size.best, n) for size, n in budget.used.items() if size != SIZES[0]]
        if smaller:
            said = "; ".join(
                f"{n} images have {side} px" if side else f"{n} images are left out" for side, n in smaller
            )
            self.image_note = f"To stay within the size limit, {said}. A larger --max-mb shows more."
        return blocks

    def _find(self, name: str) -> Path | None:
        """Find an image that a row names: from here, or from a folder above the run's, where the run was started."""
        if not name:
            return None
        return next((path for one in (Path(), *self.folder.parents) if (path := one / name).is_file()), None)

    def _page_of(self, picture: tuple[int, Path], size: Size) -> str:
        """Write what the page holds of a picture: base64, or null where it cannot be read."""
        number, path = picture
        if not size.best:
            return "null"
        try:
            return data(base64.b64encode(jpeg(path.read_bytes(), size.best, size.quality)).decode())
        except (ValueError, OSError):
            self.lost.add(str(number))
            return "null"

    def headline(self) -> str:
        """Say in one line what changed."""
        sittings = [self.run.sittings[time] for time in self.rows.times]
        title = " against ".join(one.label for one in (sittings[0], sittings[-1])[: len(sittings)])
        return f"{title}: {'; '.join(map(self._counted, self.rows.patterns)) or 'no replies were saved'}"

    def _counted(self, name: str) -> str:
        counts = _changed(self.rows.patterns[name].values())
        judged = sum(number for change, number in counts.items() if set(change) <= {RIGHT, WRONG})
        if not judged:
            return f"{name} {counts.total()} answers, {'no verdicts' if name in self.rows.silent else 'unjudged'}"
        if len(self.rows.times) == 1:
            return f"{name} {counts[RIGHT + RIGHT]} right of {judged}"
        return f"{name} {counts[WRONG + RIGHT]} made right, {counts[RIGHT + WRONG]} made wrong of {judged}"

    def notes(self) -> list[str]:
        """Say what a person must know to read the page rightly."""
        said = [*self.run.notes, *self.rows.notes]
        for name, kinds in self.rows.patterns.items():
            last = sum(n for kind in kinds.values() for verdicts, n in kind.items() if verdicts[-1] == UNJUDGED)
            if name in self.rows.silent:
                said.append(f"{name}: the saved answers do not say which are right; an older version wrote them.")
            elif last:
                said.append(f"{name}: {last} answers of the last evaluation were not judged; no figure counts them.")
        if self.lost:
            said.append(f"{len(self.lost)} images cannot be found or read; a blank stands in their place.")
        return [*said, self.image_note] if self.image_note else said


def _details(row: Row) -> dict[str, Any]:
    """Return what the index leaves out. The margin of yes means something only where yes or no is asked for."""
    asked = str(row.truth).lower() in ("yes", "no") and any(one is not None for one in row.margins)
    margins = [None if one is None else round(one, 3) for one in row.margins] if asked else None
    return {"question": row.question, "truth": row.truth, "answers": row.answers, "at": row.at, "margins": margins}


def _changed(kinds: Iterable[Counter[str]]) -> Counter[str]:
    """Count verdicts at the first and the last time, two letters."""
    counts: Counter[str] = Counter()
    for kind in kinds:
        for verdicts, number in kind.items():
            counts[verdicts[0] + verdicts[-1]] += number
    return counts
