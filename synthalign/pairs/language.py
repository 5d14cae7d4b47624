"""Gates for responses that leave the question's script or language."""

import math
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby
from typing import Any

from synthalign.pairs.wording import unquoted, words
from synthalign.types import Drop, Reply

CJK, KANA, LATIN = "CJK", "KANA", "LATIN"
_DENSE = {CJK, KANA, "HANGUL"}
"""Scripts whose letters are syllables or words."""


@dataclass(frozen=True, kw_only=True)
class ForeignScript:
    """Refuse a response that is written, in whole or in part, in a script that the question does not use.

    What stands in quotation marks is not looked at, unless there is nothing else. Latin letters beside the question's
    own script are names and brands, and pass up to ``max_run``.

    Args:
        max_share: Largest share of the response's letters in other scripts than the question's, in [0, 1]: a
            shop sign passes, a foreign answer does not.
        max_run: Most letters of other scripts on end, however long the response; a syllable or word sign counts as two.
            A name passes, a foreign half-sentence does not.
    """

    max_share: float = 0.2
    max_run: int = 20

    def __post_init__(self) -> None:
        """Refuse a share that is none, and a run of less than nothing."""
        if not 0 <= self.max_share <= 1 or self.max_run < 0:
            raise ValueError(
                f"ForeignScript needs max_share in [0, 1] and max_run >= 0, got {self.max_share:g} and {self.max_run}"
            )

    def __call__(self, question: str, reply: Reply) -> Drop | None:
        """Say ``foreign_script``, or None."""
        known, scripts = set(_scripts(question)), _scripts(unquoted(reply.text))
        counts = Counter(scripts)
        if KANA in known:  # Japanese is written in both; a question need not show it, a name need not show kana
            japanese = KANA in counts or 2 * len(scripts) <= self.max_run
            known = known | {CJK} if japanese else known - {CJK}
        foreign = {script: count for script, count in counts.items() if script not in known}
        if not known or not foreign:
            return None
        at_home = counts.total() > sum(foreign.values())
        share = sum(count for script, count in foreign.items() if not (script == LATIN and at_home))
        runs = (list(run) for strange, run in groupby(scripts, lambda script: script not in known) if strange)
        longest = max(sum(2 if script in _DENSE else 1 for script in run) for run in runs)
        if share <= self.max_share * counts.total() and longest <= self.max_run:
            return None
        return Drop("foreign_script", f"{'/'.join(sorted(foreign)).lower()} letters in {reply.text[:60]!r}")


@dataclass(frozen=True, kw_only=True)
class WrongLanguage:
    """Refuse a response in another language than the question's, script apart.

    Question and response are each read by a naive Bayes identifier of 138 languages that comes with the package
    py3langid: nothing is downloaded. Evidence is log-probability, in nats, over the square root of a text's bytes, at
    which scale the identifier's confidence is calibrated over lengths. Short and mixed texts give little evidence of
    any language, and pass. Quotations are not looked at.

    Args:
        max_evidence: Most evidence for the response's language over any that the question may be in. A list of
            Italian dishes in an English answer comes to 7.2, a foreign sentence of ten words mostly to 8 and more.
        doubt: How much less evidence than the likeliest language of the question another may have to be one that
            it may be in. English questions of one to four words have at most 2 more for some other language.
        min_words: Shortest response judged, in words (letters, where no spaces are set).
    """

    max_evidence: float = 7.5
    doubt: float = 3.0
    min_words: int = 4

    def __post_init__(self) -> None:
        """Refuse evidence of less than nothing."""
        if not (self.max_evidence >= 0 and self.doubt >= 0):
            raise ValueError(f"WrongLanguage needs max_evidence and doubt >= 0, got {self.max_evidence}, {self.doubt}")

    def __call__(self, question: str, reply: Reply) -> Drop | None:
        """Say ``wrong_language``, or None."""
        text = unquoted(reply.text)
        if len(words(text)) < self.min_words or not any(map(str.isalpha, question)):
            return None
        asked, said = _of_question(question), _evidence(text)
        wanted, spoken = max(asked, key=asked.__getitem__), max(said, key=said.__getitem__)
        possible = [name for name in asked if asked[wanted] - asked[name] <= self.doubt]
        evidence = said[spoken] - max(said[name] for name in possible)
        if evidence <= self.max_evidence:
            return None
        return Drop("wrong_language", f"{spoken} in answer to {wanted} (evidence {evidence:.3g}): {reply.text[:60]!r}")


def _evidence(text: str) -> dict[str, float]:
    """Log-probability of each language given a text, up to a constant, over the square root of its bytes."""
    scale = math.sqrt(len(text.encode("utf-8", "surrogatepass")))
    return {name: score / scale for name, score in _identifier().rank(text)}


_of_question = lru_cache(maxsize=256)(_evidence)  # the responses to one question come one after the other


@cache
def _identifier() -> Any:  # noqa: ANN401 - the package has no types
    """The language identifier, loaded once."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages([name for name in identifier.labels if name != "zxx"])  # zxx: not a language
    return identifier


def _scripts(text: str) -> list[str]:
    """The script of each letter of a text, in order."""
    return [_script(letter) for letter in unicodedata.normalize("NFKC", text) if letter.isalpha()]


@cache
def _script(letter: str) -> str:
    """The script of a letter, as its Unicode name begins: LATIN, CYRILLIC, CJK and so on."""
    script = unicodedata.name(letter, "UNKNOWN").partition(" ")[0]
    return KANA if script in {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"} else script
