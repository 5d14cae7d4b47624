"""Which pairs go so that "yes" is chosen as often as "no"."""

from synthalign.pairs import surplus
from synthalign.store import seed_of


def test_the_surplus_leaves_as_many_yes_as_no():
    chosen = {f"y{n}": text for n, text in enumerate(["Yes.", "yes, a cat", "“YES”", "Yes: 2", "yes"])}
    chosen |= {f"n{n}": text for n, text in enumerate(["No", "no!"])}
    chosen |= {"other": "A cat.", "almost": "Yesterday.", "nothing": "None.", "now": "Nothing."}
    out = surplus(list(chosen), list(chosen.values()), seed=3)
    assert len(out) == 3 and out <= {f"y{n}" for n in range(5)}
    assert (
        surplus([key for key in chosen if key not in out], [v for k, v in chosen.items() if k not in out], 3) == set()
    )


def test_the_surplus_depends_on_seed_and_ids_alone():
    ids = [f"pair-{n}" for n in range(40)]
    texts = ["No." if n % 4 else "Yes." for n in range(40)]
    out = surplus(ids, texts, seed=0)
    said_no = [pair_id for pair_id, text in zip(ids, texts, strict=True) if text == "No."]
    assert out == set(sorted(said_no, key=lambda pair_id: seed_of(0, "surplus", pair_id))[:20])
    assert surplus(ids[::-1], texts[::-1], seed=0) == out
    assert surplus(ids, ["No, none." if text == "No." else text for text in texts], seed=0) == out
    assert surplus(ids, texts, seed=1) != out


def test_a_balanced_pool_has_no_surplus():
    assert surplus(["a", "b"], ["Yes.", "No."], seed=0) == set()
    assert surplus([], [], seed=0) == set()
    assert surplus(["a", "b"], ["A cat.", "A dog."], seed=0) == set()
