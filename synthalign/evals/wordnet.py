"""nltk's words: split, tagged with their parts of speech, and led back to their lemmas in WordNet.

Source: what ``nltk.word_tokenize``, ``nltk.pos_tag`` and ``nltk.stem.WordNetLemmatizer`` do. Those keep their data for
good once they are loaded; here they belong to an object.
"""

import importlib.metadata
import importlib.util
import warnings
from functools import cached_property
from typing import Any

DATA = {
    "punkt_tab": "tokenizers/punkt_tab/english/",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng/",
    "wordnet": "corpora/wordnet/",
}
"""What nltk calls the data, and where it looks for them."""


class WordNet:
    """A tokenizer, a tagger and WordNet, loaded from the data that nltk finds at the first word.

    nltk is in the optional dependencies ``chair``. It finds its data in its own folders and in those that the variable
    ``NLTK_DATA`` names.

    Args:
        what: What needs them, to begin a message with.
        instead: What can be taken instead.

    Raises:
        ValueError: nltk or some of its data are not installed.
    """

    def __init__(self, what: str, instead: str) -> None:
        if importlib.util.find_spec("nltk") is None:
            raise ValueError(f"{what} needs nltk: pip install 'synthalign[chair]', or take {instead}")
        if missing := [name for name, place in DATA.items() if not _found(place)]:
            raise ValueError(
                f"{what} needs data that nltk does not find: python -m nltk.downloader {' '.join(missing)}, "
                f"or name their folder in NLTK_DATA, or take {instead}"
            )

    def tagged(self, text: str) -> list[tuple[str, str]]:
        """Return every word of a text with its tag in the Penn Treebank's set, such as ``NNS``."""
        sentences, words, tagger, _ = self._parts
        tagged: list[tuple[str, str]] = tagger.tag(
            [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]
        )
        return tagged

    def lemma(self, word: str, part: str) -> str:
        """Return the shortest lemma of a word, or the word itself if WordNet does not know it as this part of speech.

        Args:
            word: As it is written; WordNet knows words in lower case.
            part: WordNet's letter: n, v, a or r.
        """
        lemmas: list[str] = self._parts[3]._morphy(word, part)
        return min(lemmas, key=len, default=word)

    def about(self) -> str:
        """Name the versions, on which tags and lemmas depend."""
        return f"WordNet {self._parts[3].get_version()}, nltk {importlib.metadata.version('nltk')}"

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any, Any]:
        from nltk.corpus.reader.wordnet import WordNetCorpusReader  # type: ignore[import-untyped]
        from nltk.data import find  # type: ignore[import-untyped]
        from nltk.tag import PerceptronTagger  # type: ignore[import-untyped]
        from nltk.tokenize import NLTKWordTokenizer, PunktTokenizer  # type: ignore[import-untyped]

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The multilingual functions are not available")  # and not asked for
            wordnet = WordNetCorpusReader(find(DATA["wordnet"]), None)
        return PunktTokenizer("english"), NLTKWordTokenizer(), PerceptronTagger(), wordnet


def _found(place: str) -> bool:
    from nltk.data import find

    try:
        find(place)
    except LookupError:
        return False
    return True
