"""The authors' seeds, by hand."""

import pytest

from synthalign.pipeline.seeds import NumberedSeeds


@pytest.mark.parametrize(
    ("prompt_id", "candidate", "seed"),
    [("transport-919", 0, 919_001), ("transport-919", 3, 919_004), ("1", 0, 1_001), ("a2b-0012", 1, 12_002)],
)
def test_a_seed_is_a_thousand_times_the_number_plus_the_candidate(prompt_id, candidate, seed):
    assert NumberedSeeds()(prompt_id, candidate) == seed


def test_an_id_without_a_number_is_one_line():
    with pytest.raises(ValueError, match="needs ids that end in a number, such as transport-919; got 'cat'"):
        NumberedSeeds()("cat", 0)
