"""nltk's data, small enough to be read by eye: a tagger that knows its words by heart, and a WordNet."""

import json
from collections.abc import Mapping
from pathlib import Path

PARTS = ("noun", "verb", "adj", "adv")


def write(root: Path, tags: Mapping[str, str], lemmas: Mapping[str, str], irregular: str) -> Path:
    """Write what nltk's downloader makes, for nltk's own classes to read, and return the folder.

    Args:
        root: Where.
        tags: Words by their tags, which the tagger knows by heart.
        lemmas: WordNet's, of each part of speech, each with one sense.
        irregular: Its exceptions, ``knives knife`` a line, of nouns.
    """
    sentences = root / "tokenizers" / "punkt_tab" / "english"
    sentences.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (sentences / name).write_text("")
    tagger = root / "taggers" / "averaged_perceptron_tagger_eng"
    tagger.mkdir(parents=True)
    by_heart = {word: tag for tag, words in tags.items() for word in words.split()}
    for name, content in (("weights", {}), ("tagdict", by_heart), ("classes", [*tags])):
        (tagger / f"averaged_perceptron_tagger_eng.{name}.json").write_text(json.dumps(content))
    wordnet = root / "corpora" / "wordnet"
    wordnet.mkdir(parents=True)
    for part in PARTS:
        letter = {"adv": "r"}.get(part, part[0])
        numbered = enumerate(sorted(lemmas.get(part, "").split()), 1)
        index = [f"{lemma} {letter} 1 0 1 0 {at:08d}  \n" for at, lemma in numbered]
        (wordnet / f"index.{part}").write_text("".join(index))
        (wordnet / f"data.{part}").write_text("  1 WordNet 3.0 Copyright by nobody  \n")
        (wordnet / f"{part}.exc").write_text(irregular if part == "noun" else "")
    for name in ("index.sense", "cntlist.rev"):
        (wordnet / name).write_text("")
    (wordnet / "lexnames").write_text("00\tadj.all\t3\n")
    return root
