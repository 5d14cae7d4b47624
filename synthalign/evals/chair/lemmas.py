"""CHAIR's usual variant: words by their WordNet lemmas, which nltk finds with its own data.

Source: shikiw/OPERA at 61426ef, chair.py, which most papers on vision-language models run. It puts WordNet's lemmas
where LisaAnne/Hallucination at 6e4d33c, utils/chair.py, makes words singular by rule; all else is the same in both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from synthalign.evals.wordnet import WordNet

ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
TOGETHER = (
    *("motor bike", "motor cycle", "air plane", "train track", "suit case", "home plate", "laptop computer"),
    *("traffic light", "street light", "traffic signal", "stop light", "fire hydrant", "stop sign", "parking meter"),
    *("sports ball", "baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog", "teddy bear"),
    *("cell phone", "mobile phone", "hair drier", "potted plant"),
)
DOUBLES = {
    **{pair: pair for pair in TOGETHER},
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    **{"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"},
}
"""Pairs of words that count as one, and as which."""


@dataclass(frozen=True, kw_only=True)
class WordNetWords:
    """Lemmas: a caption is split into words, each tagged with its part of speech and led back to its WordNet lemma.

    Some pairs of words then count as one (a ``hot dog`` is no dog, a ``baby bear`` no person, and a ``train track``
    nothing at all), and where a caption has a toilet, its seat is no chair. Multi-word names other than those pairs
    are never found. The variant has known flaws, which its figures share with those that others report: a dog
    ``seated`` on a mat mentions a ``seat``, hence a chair; and ``men`` mention nobody, since WordNet knows them as they
    stand.

    nltk is in the optional dependencies ``chair``. Of its data it takes punkt_tab, averaged_perceptron_tagger_eng and
    wordnet, from the folders it looks in by itself, among them those of the variable ``NLTK_DATA``.

    Raises:
        ValueError: nltk or some of its data are not installed.
    """

    variant: ClassVar[str] = "wordnet"

    def __post_init__(self) -> None:
        _ = self._wordnet  # says at once what is not installed

    def about(self, listed: Mapping[str, str]) -> dict[str, str]:
        """Name the variant with its versions, and the listed words that no caption can mention in it."""
        said = {"variant": f"WordNet lemmas by part of speech; {self._wordnet.about()}"}
        never = [
            word
            for word, name in listed.items()
            if word != word.lower() or (" " in word and listed.get(DOUBLES.get(word, "")) != name)
        ]
        return said | ({"never_found": ", ".join(sorted(map(str.strip, never)))} if never else {})

    def finder(self, listed: Mapping[str, str]) -> Callable[[str], list[str]]:
        """Return what finds the listed words, written as they are, among a caption's lemmas."""

        def mentions(caption: str) -> list[str]:
            words = _joined(self.lemmas(caption))
            if "toilet" in words:
                words = [word for word in words if word != "seat"]
            return [listed[word] for word in words if word in listed]

        return mentions

    def lemmas(self, caption: str) -> list[str]:
        """Return the lemma of every word of a caption; whatever is no adjective, verb or adverb passes for a noun."""
        parts = {"J": "a", "V": "v", "R": "r"}
        return [
            self._wordnet.lemma(word, parts.get(tag[:1], "n")) for word, tag in self._wordnet.tagged(caption.lower())
        ]

    @cached_property
    def _wordnet(self) -> WordNet:
        return WordNet("CHAIR by WordNet's lemmas", instead="PlainWords")


def _joined(words: list[str]) -> list[str]:
    """Make one word of each known pair, from left to right."""
    joined: list[str] = []
    rest = iter(zip(words, words[1:] + [""] * bool(words), strict=True))
    for word, following in rest:
        pair = DOUBLES.get(f"{word} {following}")
        joined.append(pair or word)
        if pair:
            next(rest)
    return joined
