"""The original's way to find nouns: those that nltk tags as such, by their WordNet lemmas.

Source: junyangwang0410/AMBER at 534babf, inference.py.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

from synthalign.evals.wordnet import WordNet


@dataclass(frozen=True, kw_only=True)
class WordNetNouns:
    """The original's way: words that nltk tags as nouns, led back to their WordNet lemmas, as they are written.

    nltk is in the optional dependencies ``chair``. Of its data it takes punkt_tab, averaged_perceptron_tagger_eng and
    wordnet, from the folders it looks in by itself, among them those of the variable ``NLTK_DATA``.

    Raises:
        ValueError: nltk or some of its data are not installed.
    """

    def __post_init__(self) -> None:
        _ = self._wordnet  # says at once what is not installed

    def about(self) -> str:
        """Name the variant with its versions."""
        return f"tagged nouns by their lemmas; {self._wordnet.about()}"

    def find(self, text: str, vocabulary: AbstractSet[str]) -> list[str]:
        """Return the words of the vocabulary that the text mentions, in order, as often as it mentions them."""
        nouns = [word for word, tag in self._wordnet.tagged(text) if tag.startswith("NN")]
        lemmas = [self._wordnet.lemma(noun, "n") for noun in nouns]
        return [lemma for lemma in lemmas if lemma in vocabulary]

    @cached_property
    def _wordnet(self) -> WordNet:
        return WordNet("AMBER's nouns as nltk tags them", instead="PlainNouns")
