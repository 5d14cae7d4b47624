"""Which of the listed objects a caption mentions, word by word. CHAIR's variants differ in this alone."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from synthalign.tables import text_in


class Words(Protocol):
    """A variant of CHAIR: how the listed words are found in a caption."""

    @property
    def variant(self) -> str:
        """One word, which stands in the names of the metrics."""
        ...

    def about(self, listed: Mapping[str, str]) -> dict[str, str]:
        """Say what the variant does, and which of the listed words it can never find."""
        ...

    def finder(self, listed: Mapping[str, str]) -> Callable[[str], list[str]]:
        """Return what gives the objects that a caption mentions, in its order and as often as it mentions them.

        Args:
            listed: The objects' names by listed words, as ``read_synonyms`` gives them.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class PlainWords:
    """Whole words as they stand, without regard to case: no lemmatisation and no rules of grammar.

    ``seated`` is no ``seat``, and a plural counts only if it is listed. Where listed words overlap the longest counts:
    a ``hot dog`` is no dog.
    """

    variant: ClassVar[str] = "plain"

    def about(self, listed: Mapping[str, str]) -> dict[str, str]:
        """Name the variant; it finds every listed word."""
        return {"variant": "plain words, no lemmatisation"}

    def finder(self, listed: Mapping[str, str]) -> Callable[[str], list[str]]:
        """Return what finds the listed words, however they are spaced."""
        names = {plain(word): name for word, name in listed.items()}
        longest_first = sorted(names, key=len, reverse=True)
        words = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in longest_first)
        pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)")
        return lambda caption: [names[plain(match)] for match in pattern.findall(caption.lower())]


def read_synonyms(file: Path) -> dict[str, str]:
    """Read a list of objects, one a line: its name, then its synonyms, separated by commas.

    Returns:
        The objects' names, plain, by words as they are written. One blank after a comma belongs to the comma and any
        more to the word, as the original script reads them; case is kept too.

    Raises:
        ValueError: The file is missing, no text or empty, or a word stands for two objects.
    """
    listed: dict[str, str] = {}
    meaning: dict[str, str] = {}
    for number, line in enumerate(text_in(file).split("\n"), 1):
        words = [word for word in re.split(", ?", line.strip()) if word.strip()]
        for word in words:
            name = meaning.setdefault(plain(word), plain(words[0]))
            if name != plain(words[0]):
                raise ValueError(f"{file}, line {number}: {plain(word)!r} already stands for {name!r}; list it once")
            listed[word] = name
    if not listed:
        raise ValueError(f"{file}: no objects; write one a line, its synonyms after commas")
    return listed


def plain(word: str) -> str:
    """Case and spacing apart."""
    return " ".join(word.lower().split())
