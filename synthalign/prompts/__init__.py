"""Writes the prompts file: scenes to draw, and questions about them, by a language model or from a starter set."""

from synthalign.prompts.form import CATEGORIES, Scene, ask, read
from synthalign.prompts.repeats import THRESHOLD, Repeats
from synthalign.prompts.starter import STARTER, copy_starter
from synthalign.prompts.writing import Writer, Written, write

__all__ = [
    "CATEGORIES",
    "STARTER",
    "THRESHOLD",
    "Repeats",
    "Scene",
    "Writer",
    "Written",
    "ask",
    "copy_starter",
    "read",
    "write",
]
