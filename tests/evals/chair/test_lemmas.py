"""Both variants of CHAIR on captions worked by hand, with nltk's own classes reading a small WordNet and tagger."""

import json
import sys
from pathlib import Path

import nltk.data  # type: ignore[import-untyped]
import pytest
from evals import small_nltk

from synthalign.evals.chair import CHAIR
from synthalign.evals.chair.lemmas import WordNetWords
from synthalign.evals.chair.words import PlainWords, read_synonyms
from synthalign.types import Reply

SYNONYMS = """person, man, woman, people, child, baby, adult
chair, seat, stool
toilet
tie, bow, bow tie
dog, puppy
hot dog
bear
train
airplane, plane, jet
wine glass
tv, television
knife
dining table, table
motorcycle,  motor bike
cell phone, iPhone
"""

TAGS = {
    "NN": "man chair dog puppy table baby bear seat toilet jet train bow tie wine television iphone motor bike tail "
    "dining passenger lap",
    "NNS": "dogs knives tracks glasses people men",
    "JJ": "hot big",
    "VBN": "seated",
    "VBZ": "sits bows",
    "VBP": "watch",
    "DT": "a an the",
    "IN": "on of over in beside to",
    "CD": "two three",
    "PRP": "she",
    "CC": "and",
    "POS": "'s",
    ".": ".",
}
LEMMAS = {
    "noun": "man chair dog puppy table baby bear seat toilet jet train bow tie wine television bike tail knife track "
    "glass people watch men",
    "verb": "seat sit bow watch",
    "adj": "hot big",
    "adv": "hot",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_nltk.write(tmp_path_factory.mktemp("nltk_data"), TAGS, LEMMAS, irregular="knives knife\nmen man\n")


@pytest.fixture(scope="module")
def words(data: Path) -> WordNetWords:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [str(data)])
        words = WordNetWords()
        words.lemmas("")  # loads, from here
    return words


@pytest.fixture
def synonyms(tmp_path: Path) -> Path:
    (tmp_path / "objects.txt").write_text(SYNONYMS)
    return tmp_path / "objects.txt"


WORKED = [  # caption, its objects in plain words, its objects by lemmas
    ("A man sits on a chair.", ["person", "chair"], ["person", "chair"]),
    # seated -> seat, a verb's lemma that is listed for chairs: what is wrong with lemmas; and dogs, what is right
    ("Two dogs seated on the table.", ["dining table"], ["dog", "chair", "dining table"]),
    ("A big HOT dog", ["hot dog"], ["hot dog"]),
    ("Hot dogs and knives.", [], ["hot dog", "knife"]),
    # a baby bear is a bear alone
    ("A baby bear and a puppy.", ["person", "bear", "dog"], ["bear", "dog"]),
    ("The seat of the toilet.", ["chair", "toilet"], ["toilet"]),
    ("A toilet seat, a chair", ["toilet", "chair", "chair"], ["toilet", "chair"]),
    # a passenger jet is a jet and no passenger; a train track is no train
    ("A passenger jet over the train tracks.", ["airplane", "train"], ["airplane"]),
    ("A man in a bow tie", ["person", "tie"], ["person", "tie"]),
    ("Three wine glasses", [], ["wine glass"]),
    # listed with two blanks, or with a capital: never found by lemmas, as in the original; dining table by its table
    (
        "An iPhone on the dining table beside a motor bike",
        ["cell phone", "dining table", "motorcycle"],
        ["dining table"],
    ),
    # WordNet knows men too, as a work force, and of lemmas equal in length takes the word as it stands
    ("Men watch television.", ["tv"], ["tv"]),
    ("Two men, people", ["person"], ["person"]),
    ("A dog. The dog's tail.", ["dog", "dog"], ["dog", "dog"]),
    # to bow is no tie
    ("She bows to the people", ["person"], ["tie", "person"]),
    ("", [], []),
]


@pytest.mark.parametrize(("caption", "plainly", "by_lemmas"), WORKED, ids=[row[0] or "empty" for row in WORKED])
def test_objects_of_captions_worked_by_hand(synonyms, words, caption, plainly, by_lemmas):
    listed = read_synonyms(synonyms)
    assert PlainWords().finder(listed)(caption) == plainly
    assert words.finder(listed)(caption) == by_lemmas


def test_lemmas_follow_the_part_of_speech(words):
    assert words.lemmas("Men watch a seated dog's glasses.") == ["men", "watch", "a", "seat", "dog", "'s", "glass", "."]
    assert words.lemmas("unheard-of words") == ["unheard-of", "words"]  # of no lemma that WordNet knows


def test_figures_of_both_variants_by_hand(tmp_path, synonyms, words):
    rows = [
        {"image": "a.jpg", "objects": ["dog", "table"]},
        {"image": "b.jpg", "objects": ["bear"]},
        {"image": "c.jpg", "objects": ["man", "knife", "tv"]},
    ]
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    replies = [
        Reply("Two dogs seated on the table."),  # plain: table; lemmas: dog, chair (not there), table
        Reply("A baby bear and a puppy."),  # plain: baby, bear, puppy; lemmas: bear, puppy
        Reply("The man's television, two knives"),  # plain: man, tv; lemmas: man, tv, knife
    ]
    figures = {}
    for variant in (PlainWords(), words):
        chair = CHAIR(file=tmp_path / "truth.jsonl", images=None, synonyms=synonyms, words=variant)
        questions = chair.questions()
        figures[chair.name] = chair.report(chair.tally(questions, chair.verdicts(questions, replies)))
    length = {"words": pytest.approx((6 + 6 + 5) / 3), "n": 3, "n_empty": 0}
    assert figures["chair_plain"] == {"chair_i": 2 / 6, "chair_s": 1 / 3, "coverage": 4 / 6, "mentions": 6 / 3} | length
    assert figures["chair_wordnet"] == {"chair_i": 2 / 8, "chair_s": 2 / 3, "coverage": 1, "mentions": 8 / 3} | length


def test_the_variant_and_what_it_can_never_find_stand_under_the_figures(synonyms, words):
    said = words.about(read_synonyms(synonyms))
    assert said["variant"].startswith("WordNet lemmas by part of speech; WordNet 3.0, nltk 3.")
    assert said["never_found"] == "dining table, iPhone, motor bike"  # a bow tie is found, as a tie
    synonyms.write_text("dog, puppy\nhot dog\n")
    assert "never_found" not in words.about(read_synonyms(synonyms))


def test_data_that_are_not_there_are_named_where_the_part_is_built(data, tmp_path, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match="downloader punkt_tab averaged_perceptron_tagger_eng wordnet, or") as caught:
        WordNetWords()
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(nltk.data, "path", [str(data)])
    assert WordNetWords().variant == "wordnet"


def test_without_nltk_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ValueError, match=r"pip install 'synthalign\[chair\]', or take PlainWords"):
        WordNetWords()
