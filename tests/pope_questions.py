"""Small files of POPE's questions, and what replies to them come to."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthalign.evals.pope import POPE
from synthalign.types import Reply


def row(
    number: int | str = 1, image: str = "010.png", text: str = "Is there a cup?", label: str = "yes"
) -> dict[str, Any]:
    return {"question_id": number, "image": image, "text": text, "label": label}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def reported(pope: POPE, replies: Sequence[Reply]) -> dict[str, float]:
    questions = pope.questions()
    return pope.report(pope.tally(questions, pope.verdicts(questions, replies)))


def judged(pope: POPE, texts: Sequence[str], margins: Sequence[float | None] | None = None) -> dict[str, float]:
    pairs = zip(texts, margins or [None] * len(texts), strict=True)
    return reported(pope, [Reply(text, False, margin) for text, margin in pairs])
