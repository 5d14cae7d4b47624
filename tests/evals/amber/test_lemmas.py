"""The original's way to find nouns, with nltk's own classes reading a small tagger and a small WordNet."""

import sys
from pathlib import Path

import nltk.data  # type: ignore[import-untyped]
import pytest
from evals import small_nltk

from synthalign.evals.amber.lemmas import WordNetNouns

VOCABULARY = frozenset({"man", "tree", "gas", "glass", "knife", "watch", "sunglasses"})

TAGS = {"NN": "man tree Tree watch gas", "NNS": "trees Trees glasses knives men sunglasses", "VB": "watches", "DT": "a"}
NOUNS = "ga gas glass glasses knife man men sunglass sunglasses tree watch"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_nltk.write(tmp_path, TAGS, {"noun": NOUNS}, irregular="knives knife\nmen man\n")


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
