"""Gates and rules as a config names them: by ``synthalign.pairs.Name``."""

import pytest
from jsonargparse import ArgumentParser

from synthalign import pairs
from synthalign.store import recipe_of
from synthalign.types import PairGate, PairRule, ResponseGate

RESPONSE_GATES = {
    "Empty": {},
    "Echo": {"min_words": 4},
    "ForeignScript": {"max_share": 0.5, "max_run": 30},
    "WrongLanguage": {"max_evidence": 9.0, "doubt": 2.0, "min_words": 6},
    "RunOn": {"max_repeats": 4, "max_repeated": 0.6, "max_sentence": 200, "max_words": 800},
    "CutOff": {"dangling": ["the", "and"]},
}
PAIR_GATES = {
    "Identical": {},
    "NearIdentical": {"filler": ["the"]},
    "LengthRatio": {"min_ratio": 0.5, "max_ratio": 2.0, "floor": 5},
    "TooClose": {"min_margin": 0.5},
    "Disagreement": {"blind": "text", "aware": "judge", "min_aware": 0.25},
}
RULES = {"BestWorst": {}, "BestRandom": {}, "Margin": {"min_margin": 0.5}}


def test_every_public_class_is_named_here():
    named = {*RESPONSE_GATES, *PAIR_GATES, *RULES}
    assert named == {name for name in pairs.__all__ if name[0].isupper() and not name.endswith("_GATES")}


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        (kind, name, settings)
        for kind, table in ((ResponseGate, RESPONSE_GATES), (PairGate, PAIR_GATES), (PairRule, RULES))
        for name, settings in table.items()
    ],
    ids=[*RESPONSE_GATES, *PAIR_GATES, *RULES],
)
def test_a_class_path_and_its_settings_give_the_part_and_its_recipe_tells_them(kind, name, settings):
    parser = ArgumentParser()
    parser.add_argument("--part", type=kind)
    given = {"part": {"class_path": f"synthalign.pairs.{name}", "init_args": settings}}
    part = parser.instantiate_classes(parser.parse_object(given)).part
    assert type(part) is getattr(pairs, name)
    assert part == getattr(pairs, name)(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    )
    recipe = recipe_of(part)
    assert {key: recipe[key] for key in settings} == settings
