"""The original's way to find nouns, with nltk's own classes reading a small tagger and a small WordNet."""

import json
import sys
from pathlib import Path

import nltk.data  # type: ignore[import-untyped]
import pytest

from synthalign.evals.amber.lemmas import WordNetNouns

VOCABULARY = frozenset({"man", "tree", "gas", "glass", "knife", "watch", "sunglasses"})

TAGS = {"NN": "man tree Tree watch gas", "NNS": "trees Trees glasses knives men sunglasses", "VB": "watches", "DT": "a"}
NOUNS = "ga gas glass glasses knife man men sunglass sunglasses tree watch"
IRREGULAR = "knives knife\nmen man\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What nltk's downloader makes: a tagger that knows its words by heart, and a WordNet of nouns alone."""
    sentences = tmp_path / "tokenizers" / "punkt_tab" / "english"
    sentences.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (sentences / name).write_text("")
    tagger = tmp_path / "taggers" / "averaged_perceptron_tagger_eng"
    tagger.mkdir(parents=True)
    by_heart = {word: tag for tag, words in TAGS.items() for word in words.split()}
    for name, content in (("weights", {}), ("tagdict", by_heart), ("classes", [*TAGS])):
        (tagger / f"averaged_perceptron_tagger_eng.{name}.json").write_text(json.dumps(content))
    wordnet = tmp_path / "corpora" / "wordnet"
    wordnet.mkdir(parents=True)
    for part in ("noun", "verb", "adj", "adv"):
        lemmas = NOUNS.split() if part == "noun" else []
        (wordnet / f"index.{part}").write_text("".join(f"{lemma} n 1 0 1 0 00000001  \n" for lemma in lemmas))
        (wordnet / f"data.{part}").write_text("  1 WordNet 3.0 Copyright by nobody  \n")
        (wordnet / f"{part}.exc").write_text(IRREGULAR if part == "noun" else "")
    for name in ("index.sense", "cntlist.rev"):
        (wordnet / name).write_text("")
    (wordnet / "lexnames").write_text("00\tadj.all\t3\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "nouns"),
    [
        ("a man, trees and a tree.", ["man", "tree", "tree"]),
        ("knives glasses", ["knife", "glass"]),
        ("watches a watch", ["watch"]),  # the first a verb
        ("Trees. A Tree", []),  # as they are written
        ("men gas sunglasses", []),  # a lemma of its own; ga, the shorter of two; a sunglass
        ("", []),
    ],
)
def test_nouns_are_led_back_to_their_shortest_lemma(folder, monkeypatch, text, nouns):
    monkeypatch.setattr(nltk.data, "path", [str(folder)])
    assert WordNetNouns().find(text, VOCABULARY) == nouns


def test_about_names_the_versions(folder, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(folder)])
    assert WordNetNouns().about() == f"tagged nouns by their lemmas; WordNet 3.0, nltk {nltk.__version__}"


def test_missing_data_are_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match=r"nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"):
        WordNetNouns()


def test_without_nltk_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ValueError, match=r"pip install 'synthalign\[chair\]'"):
        WordNetNouns()
