"""The starter set: sixty scenes written by hand, four of each category, for a first run without a language model."""

from pathlib import Path

from synthalign.prompts.journal import check_folder
from synthalign.store import write_atomically

STARTER = Path(__file__).with_name("starter.jsonl")


def copy_starter(out: Path) -> Path:
    """Copy the starter set to ``prompts.jsonl`` in a folder, which is made if need be.

    Returns:
        The copy.

    Raises:
        ValueError: The folder is none, or has other prompts already.
        RuntimeError: The disk is full, or cannot be written for another reason.
    """
    check_folder(out)
    path, content = out / "prompts.jsonl", STARTER.read_bytes()
    if path.exists() and path.read_bytes() != content:
        raise ValueError(f"{path} holds other prompts: name another folder")
    write_atomically(path, content)
    return path
