from random import Random

import pytest

from synthalign.world.language import caption, describe, mentions, parse, words
from synthalign.world.scenes import OBJECTS, Item, sample, scene

CUP, PAN = Item("cup", "red", 0), Item("pan", "blue", 4)


def test_a_caption_reads_as_written_here():
    assert describe(scene("kitchen", [CUP])) == "The image shows a kitchen with a red cup at the top-left."
    assert describe(scene("study", [PAN, CUP, Item("key", "red", 7)])) == (
        "The image shows a study with a red cup at the top-left, a blue pan at the center and a red key at the bottom."
    )


def test_every_caption_parses_back_into_its_scene():
    rng = Random(0)
    for _ in range(1000):
        seen = sample(rng, 0.5)
        assert parse(describe(seen)) == seen


def test_the_order_of_a_caption_does_not_matter_to_its_scene():
    assert parse(caption("road", [PAN, CUP])) == scene("road", [CUP, PAN])


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "A photo of a cat.",
        "The image shows a kitchen.",
        "The image shows a kitchen with a red cup.",
        "The image shows a kitchen with a red cup at the top-left",
        "The image shows a kitchen with a red cup at the top-left, a blue pan at the center.",
        "The image shows a beach with a red cup at the top-left.",
        "The image shows a kitchen with a pink cup at the top-left.",
        "Note: The image shows a kitchen with a red cup at the top-left.",
    ],
)
def test_what_is_no_caption_is_refused_with_an_example(prompt: str):
    with pytest.raises(ValueError, match="write it like 'The image shows a kitchen with"):
        parse(prompt)


def test_a_kind_or_a_place_named_twice_is_refused():
    for twin in (CUP._replace(cell=5), PAN._replace(cell=0)):
        with pytest.raises(ValueError, match="twice"):
            parse(caption("kitchen", [CUP, twin]))


def test_mentions_are_read_in_the_order_of_the_text_repetitions_included():
    assert mentions(caption("garden", [PAN, CUP, CUP])) == [PAN, CUP, CUP]
    assert mentions("a red cup at the top-left and then a blue pa") == [CUP]
    assert mentions("There is no cup.") == []


def test_a_place_is_read_whole():
    assert mentions("a red cup at the top-right.") == [CUP._replace(cell=2)]
    assert mentions("a red cup at the top.") == [CUP._replace(cell=1)]
    assert mentions("a red cup at the top-up.") == []


def test_no_word_of_a_caption_but_the_objects_own_contains_an_object():
    bare = describe(scene("kitchen", [CUP])).replace("cup", "")
    said = [word for text in ("road", "garden", "study", bare) for word in words(text)]
    said += [word for color in ("red", "green", "blue", "yellow", "purple", "black") for word in words(color)]
    said += words("top-left top top-right left center right bottom-left bottom bottom-right and")
    assert not [(kind, word) for kind in OBJECTS for word in said if kind in word]
    assert not [(one, other) for one in OBJECTS for other in OBJECTS if one != other and one in other]
