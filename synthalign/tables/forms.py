"""One preference pair as a row of each format: in and out.

- The Synth-Align authors': ``conversations``, ``rejected_conversations`` and ``image``, a path inside an image folder
  (github.com/pds-dpo/pds-dpo at 40ff9a9, response_generation_ranking/run.py).
- TRL's conversational preference rows: ``prompt``, ``chosen``, ``rejected`` and ``images`` (TRL 1.16).
- RLAIF-V's columns: ``ds_name``, ``image``, ``question``, ``chosen``, ``rejected``, ``origin_dataset``,
  ``origin_split``, ``idx`` and ``image_path`` (hub dataset openbmb/RLAIF-V-Dataset, its card at d763bdb).
- Our own landing: ``synthalign.tables.PAIRS``.

What a format has no column for stands beside its own, under the names of ``EXTRAS``.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from synthalign.tables.columns import IMAGE_TOKEN
from synthalign.tables.pairset import PairRow
from synthalign.tables.rows import field
from synthalign.types import Drop

EXTRAS = (
    "image_id",
    "chosen_score",
    "rejected_score",
    "chosen_responder",
    "rejected_responder",
    "image_prompt",
)
"""Columns that every format carries beside its own."""


def pair_of(row: dict[str, Any], pair_id: str, image_id: str, where: str, num_images: int = 1) -> PairRow | Drop:
    """Read a row of any format.

    Args:
        row: The row, without its images.
        pair_id: Its id.
        image_id: Of its image, where the row names none.
        where: Place of the row, to begin a message with.
        num_images: How many images the row has.

    Returns:
        The pair, or why the row has the form of none.

    Raises:
        ValueError: A field is absent, or not as it should be.
    """
    if num_images > 1:
        return Drop("several_images", f"{num_images} images; a question here is about one")
    turns = _turns(row, where)
    if isinstance(turns, Drop):
        return turns
    question, chosen, rejected = (text.strip() for text in turns)
    if row.get("image_id") is not None:
        image_id = id_in(row, ["image_id"], image_id, where)
    return PairRow(
        pair_id,
        image_id,
        question,
        chosen,
        rejected,
        chosen_score=_score(row, "chosen_score", where),
        rejected_score=_score(row, "rejected_score", where),
        chosen_responder=_name(row, "chosen_responder", where),
        rejected_responder=_name(row, "rejected_responder", where),
        image_prompt=_name(row, "image_prompt", where),
    )


def id_in(row: dict[str, Any], keys: Sequence[str], default: str, where: str) -> str:
    """Return the first id that the row has under one of ``keys``; a whole number is read as its digits.

    Raises:
        ValueError: It is neither text nor a whole number.
    """
    for key in keys:
        value = row.get(key)
        if value is None or value == "":
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"{where}: {key!r} must be text or a whole number, found {value!r}")
        return str(value)
    return default


def _score(row: dict[str, Any], name: str, where: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where}: {name!r} must be a finite number or null, found {value!r}")
    return float(value)


def _name(row: dict[str, Any], name: str, where: str) -> str | None:
    return None if row.get(name) is None else field(row, name, where)


def _turns(row: dict[str, Any], where: str) -> tuple[str, str, str] | Drop:
    """Return (question, chosen, rejected), or why the row has no such form."""
    if "conversations" in row:
        sides = [
            [(turn["from"], _text(turn["value"], where)) for turn in _list(row, key, where, {"from", "value"})]
            for key in ("conversations", "rejected_conversations")
        ]
        names = ["human", "gpt"]
    elif "question" in row and "chosen" in row:  # RLAIF-V's rows, and ours
        question, chosen, rejected = (field(row, name, where) for name in ("question", "chosen", "rejected"))
        return question.replace(IMAGE_TOKEN, ""), chosen, rejected
    elif "chosen" in row:
        prompt = _list(row, "prompt", where, {"role", "content"}) if "prompt" in row else []
        sides = [
            [(m["role"], _text(m["content"], where)) for m in [*prompt, *_list(row, key, where, {"role", "content"})]]
            for key in ("chosen", "rejected")
        ]
        names = ["user", "assistant"]
    else:
        raise ValueError(f"{where}: neither 'conversations' nor 'chosen' among its keys {sorted(row)}")
    for side in sides:
        if [name for name, _ in side] != names:
            return Drop("not_single_turn", f"turns of {[name for name, _ in side]}")
    (_, question), (_, chosen) = sides[0]
    (_, other), (_, rejected) = sides[1]
    question, other = (text.replace(IMAGE_TOKEN, "").strip() for text in (question, other))
    if question != other:
        return Drop("two_questions", f"chosen answers {question[:40]!r}, rejected {other[:40]!r}")
    return question, chosen, rejected


def _list(row: dict[str, Any], key: str, where: str, keys: set[str]) -> list[dict[str, Any]]:
    value = row.get(key)
    if not isinstance(value, list) or not all(isinstance(turn, dict) and keys <= set(turn) for turn in value):
        raise ValueError(f"{where}: {key!r} must be a list of {{{', '.join(sorted(keys))}}}")
    return value


def _text(content: Any, where: str) -> str:  # noqa: ANN401 - a string, or a list of typed parts
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{where}: a turn must be text or a list of parts, found {content!r}")
    texts = [part.get("text") or "" for part in parts if part.get("type") == "text"]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: the text of a part must be text, found {texts!r}")
    return "".join(texts)


def reference_row(pair: PairRow, image: str) -> dict[str, Any]:
    """Write a pair as the Synth-Align authors do; ``image`` is its path."""

    def said(response: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": f"{IMAGE_TOKEN} {pair.question}"}, {"from": "gpt", "value": response}]

    sides = {"conversations": said(pair.chosen), "rejected_conversations": said(pair.rejected)}
    return {"id": pair.id, "image": image, **sides, **_extras(pair)}


def trl_row(pair: PairRow, image: Any) -> dict[str, Any]:  # noqa: ANN401
    """Write a pair as TRL's vision trainers take it; ``image`` is its path, or its {bytes, path}."""

    def turn(role: str, *parts: tuple[str, str | None]) -> list[dict[str, Any]]:
        return [{"role": role, "content": [{"type": kind, "text": text} for kind, text in parts]}]

    return {
        "id": pair.id,
        "prompt": turn("user", ("image", None), ("text", pair.question)),
        "chosen": turn("assistant", ("text", pair.chosen)),
        "rejected": turn("assistant", ("text", pair.rejected)),
        "images": [image],
        **_extras(pair),
    }


def rlaif_v_row(pair: PairRow, image: Any, dataset: str) -> dict[str, Any]:  # noqa: ANN401
    """Write a pair in RLAIF-V's columns; ``image`` is {bytes, path}, ``dataset`` the set's name."""
    models = {"chosen": pair.chosen_responder, "rejected": pair.rejected_responder}
    return {
        "ds_name": dataset,
        "image": image,
        "question": pair.question,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "origin_dataset": dataset,
        "origin_split": json.dumps({"model": models}),
        "idx": pair.id,
        "image_path": image["path"],
        **_extras(pair),
    }


def _extras(pair: PairRow) -> dict[str, Any]:
    known = {name: getattr(pair, name) for name in EXTRAS}
    return {name: value for name, value in known.items() if value is not None}
