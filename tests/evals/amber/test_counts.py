import pytest

from synthalign.evals.amber.counts import discriminative_rates, generative_rates, read_nouns, share

RELATED = {
    "person": ["people", "woman"],
    "woman": ["people"],
    "car": ["wheel"],
    "bus": ["wheel"],
    "dog": [],
    "light": [],
}
SAFE = ("light",)


def test_a_noun_that_neither_objects_nor_related_words_allow_is_invented_each_time_it_stands():
    read = read_nouns(["dog", "car", "car", "wheel"], ["dog"], [], RELATED, SAFE)
    assert read.invented == ["car", "car", "wheel"]
    assert read.covered == [0]


def test_a_noun_covers_the_first_object_it_is_related_to_even_before_the_one_it_names():
    assert read_nouns(["woman"], ["person", "woman"], [], RELATED, SAFE).covered == [0]
    assert read_nouns(["woman"], ["woman", "person"], [], RELATED, SAFE).covered == [1]
    assert read_nouns(["wheel"], ["bus", "car"], [], RELATED, SAFE).covered == [0]
    assert read_nouns(["people"], ["woman", "person"], [], RELATED, SAFE).covered == [0]


def test_of_an_object_that_stands_twice_only_the_first_is_ever_covered():
    assert read_nouns(["dog", "dog"], ["dog", "dog"], [], RELATED, SAFE).covered == [0]


def test_what_is_there_is_never_a_trap_and_what_is_a_trap_is_invented():
    read = read_nouns(["people", "wheel"], ["person"], ["woman", "bus"], RELATED, SAFE)
    assert read == (["wheel"], [0], [1])


def test_a_safe_word_is_neither_invented_nor_does_it_cover_what_it_names():
    assert read_nouns(["light"], ["light"], ["light"], RELATED, SAFE) == ([], [], [])


def test_generative_rates_by_hand():
    count = {"n": 4, "n_clean": 3, "nouns": 10, "invented": 2, "objects": 8, "covered": 4, "traps": 5, "trapped": 1}
    assert generative_rates({**count, "words": 60}) == {
        "chair": pytest.approx(2 / 10.001),
        "cover": pytest.approx(4 / 8.001),
        "hal": pytest.approx(1 - 3 / 4.001),
        "cog": pytest.approx(1 / 5.001),
        "words": 15.0,
    }


def test_discriminative_rates_by_hand():
    # 6 of 10 right; truth is no in 5; No was said 4 times, 3 of them rightly
    count = {"n": 10, "n_correct": 6, "n_no": 5, "n_said_no": 4, "n_both": 3}
    rates = discriminative_rates("relation", count)
    assert rates["accuracy"] == 6 / 10.001
    assert rates["precision"] == 3 / 4.001  # .74981, rounded to .75 in F1
    assert rates["recall"] == 3 / 5.001  # .59988, rounded to .6
    assert rates["f1"] == pytest.approx(2 * 0.75 * 0.6 / (1.35 + 0.0001))
    assert discriminative_rates("attribute", count)["accuracy"] == 6 / 10.003
    assert discriminative_rates("existence", count)["f1"] == pytest.approx(2 * 0.75 * 0.6 / (1.35 + 0.001))


def test_nothing_of_nothing_is_zero():
    zero = dict.fromkeys(("n", "n_clean", "nouns", "invented", "objects", "covered", "traps", "trapped", "words"), 0.0)
    assert set(generative_rates(zero).values()) == {0.0}
    none = dict.fromkeys(("n", "n_correct", "n_no", "n_said_no", "n_both"), 0.0)
    assert set(discriminative_rates("existence", none).values()) == {0.0}
    assert share(0, 0) == 0
