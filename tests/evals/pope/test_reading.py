import pytest

from synthalign.evals.pope.reading import exact_answer, rates, says_yes, strict_answer


@pytest.mark.parametrize(
    ("reply", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no", False),
        ("No, there is no dog.", False),
        ("There is not a dog.", False),
        ("I do not think so", False),
        ("Yes. No dog is to be seen.", True),  # only the first sentence counts
        (". No", True),
        ("", True),
        ("NO", True),
        ("No!", True),
        ("No\n", True),  # the official script splits on spaces alone
        ("\tno", True),
        ("None", True),
        ("Nothing of the kind", True),
        ("yes,no", True),  # a comma goes without leaving a space
        ("I cannot tell", True),
    ],
)
def test_the_official_parser_means_yes_unless_the_first_sentence_says_no_or_not(reply, yes):
    assert says_yes(reply) is yes


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("NO!", "no"),
        ("Yes, there is a cup.", "yes"),
        ("There is no cup in the picture.", "no"),
        ("", None),
        ("yes and no", None),
        ("I cannot tell", None),
        ("There is not a cup.", None),
        ("Nothing", None),
    ],
)
def test_the_strict_reader_wants_yes_or_no_and_not_both(reply, answer):
    assert strict_answer(reply) == answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [("Yes", "yes"), (" NO\n", "no"), ("No.", None), ("yes no", None), ("", None), ("Yes, there is", None)],
)
def test_the_exact_reader_wants_one_word_alone(reply, answer):
    assert exact_answer(reply) == answer


def test_rates_by_hand():
    # 5 answered yes of which 3 rightly, 5 answered no of which 4 rightly; 4 are truly yes
    assert rates(tp=3, fp=2, tn=4, fn=1) == {
        "accuracy": 0.7,
        "precision": 0.6,
        "recall": 0.75,
        "f1": pytest.approx(2 * 0.6 * 0.75 / 1.35),
        "yes_ratio": 0.5,
    }


def test_where_the_official_script_divides_by_zero_stands_zero():
    assert rates(0, 0, 5, 5) == {"accuracy": 0.5, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0}
    assert set(rates(0, 0, 0, 0).values()) == {0.0}
