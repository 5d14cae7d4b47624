"""Folders of runs written by hand, as the Evaluate callback leaves them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


class RunFolder:
    """The folder of a fit that evaluated the same questions several times."""

    def __init__(self, root: Path) -> None:
        self.root, self.images = root, root / "images"
        self.images.mkdir(parents=True)
        self.history: list[dict[str, Any]] = []
        self.evals: dict[str, dict[str, Any]] = {}

    def image(self, name: str, side: int = 80) -> str:
        """Draw an image unless it is there; give its path as a row names it."""
        path = self.images / name
        if not path.is_file():
            Image.effect_mandelbrot((side, side), (-2, -1.5, 1, 1.5), len(self.history) + 20).save(path)
        return path.as_posix()

    def sit(
        self,
        epoch: float,
        answers: Mapping[str, Sequence[dict[str, Any]]],
        metrics: Mapping[str, float],
        step: int | None = None,
        label: str | None = None,
    ) -> None:
        """Save one evaluation."""
        label = label or f"epoch-{epoch:03.0f}"
        for name, rows in answers.items():
            self.save(label, name, rows)
            self.evals.setdefault(name, {})
        step = int(epoch * 10) if step is None else step
        self.history.append({"epoch": epoch, "step": step, "samples": f"samples/{label}", "metrics": dict(metrics)})

    def save(self, label: str, name: str, rows: Sequence[dict[str, Any]]) -> Path:
        """Write the replies of one evaluation."""
        path = self.root / "samples" / label / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def finish(self, stage: str = "fit", **others: object) -> Path:
        """Write results.json; give the folder."""
        first, last = self.history[0]["metrics"], self.history[-1]["metrics"]
        history = self.history if stage == "fit" else []
        before = first if len(self.history) > 1 else None
        results = {"stage": stage, "before": before, "after": last, "history": history, "evals": self.evals} | others
        (self.root / "results.json").write_text(json.dumps(results), encoding="utf-8")
        return self.root


def yes_no(
    number: int, reply: str, truth: str = "no", *, image: str = "", kind: str = "random", margin: float | None = None
) -> dict[str, Any]:
    """A row of an evaluation of yes and no."""
    return {
        "id": f"{kind}/{number}",
        "image": image,
        "kind": kind,
        "question": f"Is there a cup? {number}",
        "reply": reply,
        "truncated": False,
        "yes_margin": margin,
        "truth": truth,
        "answer": reply.lower(),
        "correct": reply.lower() == truth,
    }
