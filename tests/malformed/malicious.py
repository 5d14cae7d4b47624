"""Pickles that are programs: loading one would make a folder, which then bears witness."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch


class Program:
    """Pickled, it is an order to make a folder."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


def plain(witness: Path) -> bytes:
    """A pickle by itself."""
    return pickle.dumps({"state_dict": Program(witness)}, protocol=2)


def archived(witness: Path) -> bytes:
    """What ``torch.save`` writes now: an archive with the pickle in it."""
    stream = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "global_step": 1, "extra": Program(witness)}, stream)
    return stream.getvalue()


def legacy(witness: Path) -> bytes:
    """What ``torch.save`` wrote before."""
    stream = io.BytesIO()
    torch.save({"state_dict": Program(witness)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


PICKLES = {"plain": plain, "archived": archived, "legacy": legacy}
