import pytest

from synthalign.evals.amber.words import PlainNouns

VOCABULARY = frozenset(
    "sky tree box beach child knife woman man leave vase bus grass toy sunglasses can hot drawing TV e-book".split()
)


@pytest.mark.parametrize(
    ("text", "nouns"),
    [
        ("A tree, a box and the sky.", ["tree", "box", "sky"]),
        ("two trees, two boxes, many beaches, wide skies, small toys", ["tree", "box", "beach", "sky", "toy"]),
        ("children and women with knives", ["child", "woman", "knife"]),
        ("the woman's tree; a tree-house", ["woman", "tree"]),
        ("the bus on the grass, and buses", ["bus", "grass", "bus"]),
        ("a TV and an e-book", ["TV", "e-book"]),
        ("", []),
        ("treetops in skylight, skyscrapers", []),
    ],
)
def test_words_are_found_whole_singular_or_plural_in_order(text, nouns):
    assert PlainNouns().find(text, VOCABULARY) == nouns


def test_words_that_the_original_cannot_find_are_not_found():
    text = "Trees stand there. SKY. The men left, their sunglasses on; vases with leaves."
    assert PlainNouns().find(text, VOCABULARY) == []


def test_a_word_that_is_seldom_a_noun_counts_only_after_an_article():
    text = "It can be seen that hot air is drawing near a trash can, by A can and a drawing, a hot one."
    assert PlainNouns().find(text, VOCABULARY) == ["can", "can", "drawing"]
