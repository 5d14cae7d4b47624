"""Run one command, and judge how it ended and what it left."""

import contextlib
import hashlib
import io
import json
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from malformed.world import inside
from safetensors import safe_open

from synthalign.cli import main

ENDINGS = LINE, DROP, FINE, FAULT = "one line", "counted drop", "as if nothing were wrong", "fault"
BEGIN = "synthalign: error: "
MAX_LINE = 600
"""Characters of the longest line that still counts as one: what a file says of itself may be quoted in it."""


class Outcome(NamedTuple):
    """How an example ended."""

    ending: str  # one of LINE, DROP, FINE, FAULT
    said: str  # the line; or what is wrong


def judge(folder: Path, argv: Sequence[str], door: Callable[[Sequence[str]], None] = main) -> Outcome:
    """Run a command in a folder; whatever was there must be there afterwards, unchanged, and all that is new whole."""
    before = contents(folder)
    said = io.StringIO()
    code: object = 0
    with inside(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            door(argv)
        except SystemExit as stopped:
            code = stopped.code
        except BaseException:
            return Outcome(FAULT, traceback.format_exc())
    after = contents(folder)
    if lost := sorted(path for path in before if after.get(path) != before[path]):
        return Outcome(FAULT, f"changed or lost: {lost}")
    new = [folder / path for path in sorted(set(after) - set(before))]
    for path in new:
        if wrong := unfinished(path):
            return Outcome(FAULT, f"left {path.relative_to(folder)}: {wrong}")
    lines = [line for line in said.getvalue().splitlines() if line.startswith(BEGIN)]
    if code == 0:
        if lines or "Traceback" in said.getvalue():
            return Outcome(FAULT, f"went on after {said.getvalue()}")
        dropped = [path for path in new if path.name == "dropped.jsonl"]
        return Outcome(DROP if dropped else FINE, said.getvalue())
    if code != 2 or len(lines) != 1 or "usage:" in said.getvalue() or "Traceback" in said.getvalue():
        return Outcome(FAULT, f"left with {code} after {said.getvalue()}")
    if said.getvalue().splitlines()[-1] != lines[0]:
        return Outcome(FAULT, f"the line is not the last: {said.getvalue()}")
    if len(lines[0]) > MAX_LINE:
        return Outcome(FAULT, f"a line of {len(lines[0])} characters: {lines[0]}")
    return Outcome(LINE, lines[0].removeprefix(BEGIN))


def contents(folder: Path) -> dict[str, str]:
    """Digest every file, and name where every link leads."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in files + [name for name in folders if os.path.islink(os.path.join(place, name))]:
            path = Path(place, name)
            key = str(path.relative_to(folder))
            try:
                found[key] = os.readlink(path) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
            except PermissionError:  # taken away by an example; it takes nothing from root
                found[key] = "unreadable"
    return found


def unfinished(path: Path) -> str:
    """Say what is not whole about a file that a run left; nothing if it is."""
    if path.name.endswith((".part", ".tmp", ".old")) or ".part" in str(path):
        return "a part"
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".jsonl":
            assert all(json.loads(line) for line in path.read_text("utf-8").splitlines())
            assert path.read_bytes().endswith(b"\n")
        elif path.suffix == ".yaml":
            yaml.safe_load(path.read_bytes())
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert all(file.get_tensor(name) is not None for name in file.keys())
        elif path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
    except Exception as error:
        return repr(error)
    return ""
