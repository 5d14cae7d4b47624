"""Which file holds which split of a benchmark: as it is named, ``split=file``, or as the file's own name says."""

import os
from collections.abc import Sequence
from pathlib import Path

KNOWN = ("random", "popular", "adversarial")
"""POPE's: a file that has one of these in its name is of that split."""


def files_of(named: Sequence[str]) -> dict[str, Path]:
    """Return the file of each split.

    Args:
        named: Each ``split=file``, or a file alone: of the split that its name holds, or else of one called as it is.

    Raises:
        ValueError: Two files are of one split, or one is not there.
    """
    files: dict[str, Path] = {}
    for one in named:
        split, file = _split(one)
        if split in files:
            raise ValueError(f"{files[split]} and {file} are both of the split {split!r}; name each: SPLIT=FILE")
        files[split] = file
    for file in files.values():  # before the splits are compared: a mistyped path is of no split at all
        if os.path.isdir(file) or not os.path.exists(file):  # Path's own raise where a name is too long
            raise ValueError(f"{file} is a folder, not a file" if os.path.isdir(file) else f"no such file: {file}")
    return files


def answers_of(named: Sequence[str], files: dict[str, Path]) -> dict[str, Path]:
    """Return the answers to each split of ``files``: one file may hold them all, unless it is named after one.

    Raises:
        ValueError: The splits are not the same.
    """
    answers = files_of(named)
    if len(answers) == 1 and not answers.keys() & {*files, *KNOWN}:
        return dict.fromkeys(files, *answers.values())
    if answers.keys() != files.keys():
        raise ValueError(
            f"the questions are of {', '.join(files)}, the answers of {', '.join(answers)}; name the files: SPLIT=FILE"
        )
    return answers


def _split(named: str) -> tuple[str, Path]:
    split, equals, file = named.partition("=")
    if equals and not os.path.exists(named):
        return split, Path(file)
    stem = Path(named).stem
    return next((known for known in KNOWN if known in stem), stem), Path(named)
