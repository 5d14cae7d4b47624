"""Captions: how a scene is put into words, and how the words are read back."""

import re
from collections.abc import Sequence

from synthalign.world.scenes import COLORS, OBJECTS, PLACES, THEMES, Item, Scene, scene


def _any(words: Sequence[str]) -> str:
    return "(" + "|".join(sorted(words, key=len, reverse=True)) + ")"


_ITEM = rf"a {_any(COLORS)} {_any(OBJECTS)} at the {_any(PLACES)}"
_MENTION = re.compile(rf"\b{_ITEM}(?![\w-])")
_CAPTION = re.compile(rf"The image shows a {_any(tuple(THEMES))} with ((?:{_ITEM}(?:, | and |\.))+)")
_WORD = re.compile(r"[\w-]+")


def phrase(item: Item) -> str:
    """Say one item: ``a red cup at the top-left``."""
    return f"a {item.color} {item.kind} at the {PLACES[item.cell]}"


def caption(theme: str, items: Sequence[Item]) -> str:
    """Say a whole scene, its items in the order given."""
    *most, last = map(phrase, items)
    return f"The image shows a {theme} with {', '.join(most)}{' and ' if most else ''}{last}."


def describe(seen: Scene) -> str:
    """Say all that is in a scene."""
    return caption(seen.theme, seen.items)


def mentions(text: str) -> list[Item]:
    """Read every item that a text names with its color and place, in the order of the text, repetitions included."""
    return [Item(kind, color, PLACES.index(place)) for color, kind, place in _MENTION.findall(text)]


def parse(text: str) -> Scene:
    """Read a caption back into its scene.

    Raises:
        ValueError: if the text is not a caption, or puts two objects in one place, or names a kind twice.
    """
    match = _CAPTION.fullmatch(text.strip())
    items = mentions(text)
    if match is None or caption(match[1], items) != text.strip():
        raise ValueError(
            f"the offline world cannot read the prompt {text!r}: write it like 'The image shows a kitchen with a red "
            "cup at the top-left and a blue pan at the center.'"
        )
    if len({item.kind for item in items}) < len(items) or len({item.cell for item in items}) < len(items):
        raise ValueError(f"the prompt {text!r} names a kind or a place twice: each may come once in a scene")
    return scene(match[1], items)


def words(text: str) -> list[str]:
    """Split a text into lower-case words; a hyphenated place is one word."""
    return _WORD.findall(text.lower())
