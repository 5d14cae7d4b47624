"""What a run was trained on, as far as its folder says."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from synthalign.export.source import Source
from synthalign.store import fingerprint
from synthalign.tables.hub import gist

RECORD = "data.json"
"""In a run's folder: ``pairs``, how many it trained on; ``held_out``; ``fingerprint``, a digest of all of them."""


def data_of(source: Source) -> dict[str, Any]:
    """Say what the pairs are, how many, and how to tell whether others are the same."""
    pairs, store = source.setting("data", "init_args", "pairs"), source.setting(*SYNTHESIS, "store")
    rows: dict[str, Any] = {}
    if isinstance(pairs, str):
        rows["Pairs"] = pairs
        rows |= _digest(Path(pairs))
    elif isinstance(store, str):
        rows["Pairs"] = f"made by the run, kept in {store}"
        prompts = source.setting(*SYNTHESIS, "prompts")
        rows |= {"Prompts": prompts} if isinstance(prompts, str) else {}
        landed = sorted(path.name for path in Path(store).glob("pair-*") if path.is_dir())
        rows |= {"Landings of pairs there at export": ", ".join(landed)} if landed else {}
    return rows | _recorded(source.run / RECORD) | _dropped(source.run / "dropped.jsonl")


SYNTHESIS = ("data", "init_args", "synthesis")


def _digest(pairs: Path) -> dict[str, str]:
    if not pairs.exists():
        return {}
    return {f"Digest of the {'file' if pairs.is_file() else 'folder'} at export": fingerprint(pairs)}


def _recorded(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {"Digest of the pairs trained on and held out": f"unknown: the run wrote no {RECORD}"}
    try:
        found = json.loads(path.read_bytes())
        return {
            "Pairs trained on": found["pairs"],
            "Pairs held out": found["held_out"],
            "Digest of the pairs trained on and held out": found["fingerprint"],
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not what a run writes: {gist(error)}") from error


def _dropped(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        reasons = Counter(str(json.loads(line)["reason"]) for line in lines)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not what a run writes: {gist(error)}") from error
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return {"Pairs left out": f"{reasons.total()} ({counts})"}
