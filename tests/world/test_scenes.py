from collections import Counter
from random import Random

import pytest

from synthalign.world.scenes import (
    BIASED,
    FEWEST,
    MOST,
    OBJECTS,
    POPULARITY,
    THEMES,
    Item,
    imagine,
    mistakes,
    sample,
    scene,
    spoil,
)

CUP, PAN, CAR = Item("cup", "red", 0), Item("pan", "blue", 4), Item("car", "green", 8)


def test_a_scene_keeps_its_items_in_the_order_of_their_cells():
    assert scene("kitchen", [CAR, CUP, PAN]) == scene("kitchen", [PAN, CAR, CUP])
    assert scene("kitchen", [CAR, CUP]).items == (CUP, CAR)


def test_a_scene_knows_what_it_holds_and_what_it_lacks():
    seen = scene("kitchen", [CUP, CAR])
    assert seen.kinds == {"cup", "car"}
    assert seen.find("cup") == CUP
    assert seen.find("pan") is None
    assert seen.at(8) == CAR
    assert seen.at(4) is None
    assert seen.free == [1, 2, 3, 4, 5, 6, 7]
    assert seen.missing() == ["fork", "pan", "plate", "knife"]
    assert len(seen.strangers()) == 14  # 15 kinds of other themes, less the car
    assert "car" not in seen.strangers()


def test_the_same_seed_draws_the_same_scenes_and_another_seed_others():
    def draw(seed: int) -> list:
        rng = Random(seed)
        return [sample(rng, 0.5) for _ in range(20)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_sampled_scenes_hold_two_to_five_objects_one_of_a_kind_and_one_a_cell():
    rng = Random(0)
    scenes = [sample(rng, 0.9) for _ in range(500)]
    assert {len(seen.items) for seen in scenes} == set(range(FEWEST, MOST + 1))
    for seen in scenes:
        assert len(seen.kinds) == len({item.cell for item in seen.items}) == len(seen.items)


def test_biased_scenes_keep_to_their_theme_and_prefer_its_popular_kinds():
    rng = Random(0)
    scenes = [sample(rng, BIASED) for _ in range(3000)]
    counts = Counter(kind for seen in scenes for kind in seen.kinds)
    inside = sum(kind in THEMES[seen.theme] for seen in scenes for kind in seen.kinds)
    assert inside / counts.total() > 0.7
    for kinds in THEMES.values():
        assert [kind for kind, _ in Counter({kind: counts[kind] for kind in kinds}).most_common()] == list(kinds)


def test_the_popularities_of_a_theme_are_a_distribution():
    assert sum(POPULARITY) == pytest.approx(1)
    assert all(len(kinds) == len(POPULARITY) for kinds in THEMES.values())
    assert len(set(OBJECTS)) == 20


def test_an_imagined_object_fits_the_theme_and_fills_a_free_cell():
    rng = Random(0)
    seen = scene("kitchen", [CUP, CAR])
    invented = [imagine(seen, rng) for _ in range(200)]
    assert {item.kind for item in invented if item} == {"fork", "pan", "plate", "knife"}
    assert {item.cell for item in invented if item} == set(seen.free)
    full = scene("kitchen", [Item(kind, "red", cell) for cell, kind in enumerate(THEMES["kitchen"])])
    assert imagine(full, rng) is None


def test_level_zero_spoils_nothing_and_level_one_leaves_nothing_as_it_was():
    rng = Random(0)
    for _ in range(200):
        meant = sample(rng, 0.5)
        assert spoil(meant, rng, 0.0) == meant
        assert not set(spoil(meant, rng, 1.0).items) & set(meant.items)


def test_spoiling_never_doubles_a_kind_or_a_cell_and_never_empties_a_scene():
    rng = Random(0)
    for _ in range(500):
        spoilt = spoil(sample(rng, 0.5), rng, 0.8)
        assert spoilt.items
        assert len(spoilt.kinds) == len({item.cell for item in spoilt.items}) == len(spoilt.items)


def test_mistakes_count_a_wrong_object_once_and_a_missing_one_half():
    meant = scene("kitchen", [CUP, PAN])
    assert mistakes(meant, meant) == 0
    assert mistakes(meant, scene("kitchen", [CUP, PAN._replace(color="red")])) == 1
    assert mistakes(meant, scene("kitchen", [CUP])) == 0.5
    assert mistakes(meant, scene("kitchen", [CUP, PAN, CAR])) == 0.5
