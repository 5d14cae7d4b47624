"""Which objects a description mentions: its nouns that are words of AMBER's vocabulary.

The original (junyangwang0410/AMBER at 534babf, inference.py) takes what nltk tags as nouns, by its WordNet lemmas.
"""

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

IRREGULAR = {
    "bookshelf": ("bookshelves",),
    "child": ("children",),
    "goose": ("geese",),
    "knife": ("knives",),
    "mouse": ("mice",),
    "potato": ("potatoes",),
    "scarf": ("scarves",),
    "shelf": ("shelves",),
    "tomato": ("tomatoes",),
    "woman": ("women",),
    # WordNet knows `men` as a word of its own, takes `leaves` to `leaf` and `vases` to `vas`: the original counts none.
    "man": (),
    "leave": (),
    "vase": (),
}
"""Plurals that no rule gives, of the vocabulary's words."""

ARTICLES = frozenset("a an the this that another one his her its their my your".split())

SELDOM_NOUNS = {
    "can": ARTICLES | {"garbage", "trash", "tin", "soda", "beer"},
    "drawing": ARTICLES,
    "drink": ARTICLES,
    "hot": frozenset[str](),
    "leave": ARTICLES,
    "sailing": ARTICLES,
    "support": ARTICLES,
    "watch": ARTICLES | {"wrist"},
}
"""Words of the vocabulary that mostly stand for something else, and the words after which they are nouns still."""

WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")


class Nouns(Protocol):
    """Finds a vocabulary's words in a text."""

    def about(self) -> str:
        """Say how, in words for people."""
        ...

    def find(self, text: str, vocabulary: AbstractSet[str]) -> list[str]:
        """Return the words of the vocabulary that the text mentions, in order, as often as it mentions them."""
        ...


@dataclass(frozen=True, kw_only=True)
class PlainNouns:
    """Whole words, singular or plural, as they are written, with no tagger.

    As in the original a word with a capital, such as the first of a sentence, is not found, nor are words that are
    listed as plurals (``sunglasses``). A few words that are seldom nouns, such as ``can``, count only after an article
    and its like.

    On 500 descriptions of COCO photographs (llizhaoxu/Efficient-HA at 6f88af3, Result1/output_dola.json) it finds 3993
    of the 3997 words that the original finds, and 138 more, most of them nouns that the tagger takes for adjectives.
    """

    def about(self) -> str:
        """Name the variant."""
        return "plain words: singular and plural of the benchmark's words, no tagger"

    def find(self, text: str, vocabulary: AbstractSet[str]) -> list[str]:
        """Return the words of the vocabulary that the text mentions, in order, as often as it mentions them."""
        singular = _singulars(frozenset(vocabulary))
        found = []
        before = ""
        for word in WORD.findall(text):
            known = singular.get(word)
            if known and (word not in SELDOM_NOUNS or before.lower() in SELDOM_NOUNS[word]):
                found.append(known)
            before = word
        return found


@lru_cache(maxsize=4)
def _singulars(vocabulary: frozenset[str]) -> dict[str, str]:
    """Every form that counts, with the word of the vocabulary it stands for; a listed word stands for itself."""
    forms = {form: word for word in sorted(vocabulary) for form in _plurals(word)}
    plurals = {word for word in vocabulary if re.search(r"[^aius]s$", word)}
    return forms | {word: word for word in vocabulary - plurals}


def _plurals(word: str) -> tuple[str, ...]:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if re.search(r"(?:s|x|z|ch|sh)$", word):
        return (word + "es",)
    if re.search(r"[^aeiou]y$", word):
        return (word[:-1] + "ies",)
    return (word + "s",)
