"""A landing is whole or absent, named by what made it; ranks tell a dead one from a slow one."""

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from synthalign import store
from synthalign.pairs import TooClose
from synthalign.rewards.clip import CLIPReward
from synthalign.store import (
    Landing,
    digest,
    fingerprint,
    recipe_of,
    seed_of,
    shards_of,
    sign_of_life,
    wait_for,
    write_atomically,
)
from synthalign.vlm import VLM

SCHEMA = pa.schema({"id": pa.string(), "score": pa.float64()})
ROWS = [{"id": f"row-{n}", "score": n / 3} for n in range(7)]
IDS = [row["id"] for row in ROWS]


def landing(root: Path, **recipe: Any) -> Landing:
    return Landing(root, "score", {"seed": 0, **recipe}, SCHEMA)


def land(root: Path, size: int = 3) -> Landing:
    one = landing(root)
    for shard in shards_of(IDS, size):
        one.write(shard, [row for row in ROWS if row["id"] in shard.rows])
    return one


# Shards


def test_a_shard_holds_consecutive_rows_and_the_last_may_be_shorter():
    assert [shard.rows for shard in shards_of(IDS, 3)] == [tuple(IDS[:3]), tuple(IDS[3:6]), tuple(IDS[6:])]
    assert shards_of([], 3) == []


def test_a_shards_name_depends_on_its_rows_and_place_alone():
    names = [shard.name for shard in shards_of(IDS, 3)]
    assert names == [shard.name for shard in shards_of(list(IDS), 3)]
    assert len(set(names)) == 3
    swapped = [IDS[1], IDS[0], *IDS[2:]]
    assert [shard.name == name for shard, name in zip(shards_of(swapped, 3), names, strict=True)] == [False, True, True]


@pytest.mark.parametrize(("more", "kept"), [(1, 2), (2, 2), (5, 2)])
def test_more_rows_add_shards_and_change_at_most_the_last(more, kept):
    before = [shard.name for shard in shards_of(IDS, 3)]
    after = [shard.name for shard in shards_of(IDS + [f"new-{n}" for n in range(more)], 3)]
    assert after[:kept] == before[:kept]
    assert after[kept] != before[kept]
    full = [shard.name for shard in shards_of(IDS[:6], 3)]
    assert [shard.name for shard in shards_of([*IDS[:6], "new"], 3)][:2] == full


# Landings


def test_what_was_written_is_read(tmp_path):
    one = land(tmp_path)
    read = [row for shard in shards_of(IDS, 3) for row in one.read(shard)]
    assert read == ROWS
    assert one.read(shards_of(IDS, 3)[1], ["id"]) == [{"id": name} for name in IDS[3:6]]
    assert json.loads((one.folder / "recipe.json").read_text()) == {"stage": "score", "seed": 0}


def test_the_same_rows_give_the_same_bytes(tmp_path):
    first, second = land(tmp_path / "a"), land(tmp_path / "b")
    for shard in shards_of(IDS, 3):
        assert first.path(shard).read_bytes() == second.path(shard).read_bytes()


def test_a_row_that_does_not_fit_the_columns_lands_nothing(tmp_path):
    one, shard = landing(tmp_path), shards_of(IDS, 3)[0]
    with pytest.raises(pa.ArrowInvalid):
        one.write(shard, [{"id": "row-0", "score": "high"}])
    assert not one.has(shard)


def test_a_half_written_shard_never_counts(tmp_path):
    one, shard = landing(tmp_path), shards_of(IDS, 3)[0]
    one.folder.mkdir()
    (one.folder / f".{shard.name}.0123456789abcdef.part").write_bytes(b"PAR1 and no more")
    assert not one.has(shard)
    one.write(shard, ROWS[:3])
    assert one.has(shard) and one.read(shard) == ROWS[:3]


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full_disk)
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_threads_that_write_one_file_at_once_do_not_meet(tmp_path):
    contents = [bytes([n]) * 10_000 for n in range(4)]
    errors: list[Exception] = []

    def write_often(content: bytes) -> None:
        try:
            for _ in range(20):
                write_atomically(tmp_path / "file", content)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write_often, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() in contents


def test_a_damaged_shard_is_one_line_that_says_what_to_do(tmp_path):
    one, shard = land(tmp_path), shards_of(IDS, 3)[0]
    path = one.path(shard)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"\.parquet is damaged .*: delete it and run again$") as caught:
        one.read(shard)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# Addresses


@dataclass(frozen=True, kw_only=True)
class Part:
    model: str = "owner/name"
    level: float = 0.5
    tags: frozenset[str] = frozenset()
    revision: str | None = None
    device: str = "auto"


class Plain:
    def __init__(self, level: float, names: Sequence[str] = ()) -> None:
        self.level, self.names = level, names


class Forgetful:
    def __init__(self, level: float) -> None:
        self._level = level


class Rule(NamedTuple):
    margin: float


def best(scores: Sequence[float]) -> None:
    return None


def test_every_setting_of_a_part_changes_its_recipe_and_where_it_runs_does_not():
    base = recipe_of(Part())
    for change in ({"model": "owner/other"}, {"level": 0.6}, {"tags": frozenset({"a"})}, {"revision": "v2"}):
        assert recipe_of(Part(**change)) != base, change
    assert recipe_of(Part(device="cuda:1")) == base
    assert base["class"].endswith("Part")


def test_every_setting_of_the_real_parts_changes_an_address(tmp_path, tiny_llava, tiny_clip):
    assert recipe_of(TooClose(min_margin=0.1)) != recipe_of(TooClose(min_margin=0.2))
    responder = VLM(model=str(tiny_llava))
    changes: list[dict[str, Any]] = [
        {"temperature": 0.5},
        {"max_new_tokens": 5},
        {"top_k": 3},
        {"top_p": 0.5},
        {"system_prompt": "Be brief."},
        {"chat_template": "{{ messages }}" * 100},  # longer than any file's name may be
        {"dtype": "bfloat16"},
        {"batch_size": 3},
    ]
    recipes = [recipe_of(VLM(model=str(tiny_llava), **change)) for change in changes]
    addresses = {landing(tmp_path, part=recipe).address for recipe in [recipe_of(responder), *recipes]}
    assert len(addresses) == 1 + len(changes)
    assert recipe_of(VLM(model=str(tiny_llava), device="cpu")) == recipe_of(responder)
    assert recipe_of(CLIPReward(model=str(tiny_clip), batch_size=1)) != recipe_of(CLIPReward(model=str(tiny_clip)))


def test_a_plain_class_is_described_by_its_arguments_and_a_function_by_its_name():
    assert recipe_of(Plain(0.5)) != recipe_of(Plain(0.6))
    assert recipe_of(Plain(0.5, ["a"])) == recipe_of(Plain(0.5, ["a"])) != recipe_of(Plain(0.5, ["b"]))
    assert recipe_of(Rule(1.0)) != recipe_of(Rule(2.0))
    assert recipe_of(best) != recipe_of(seed_of)


def test_a_part_whose_settings_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="Forgetful does not keep its arguments level: store each as an attribute"):
        recipe_of(Forgetful(0.5))


def test_the_order_of_a_set_and_of_a_dict_does_not_matter():
    names = [f"name-{n}" for n in range(20)]
    one, other = {0, 8}, {8, 0}  # they collide, so that each set goes through them as they came in
    assert list(one) != list(other)
    assert recipe_of(one) == recipe_of(other)
    assert digest(recipe_of({"a": 1, "b": 2})) == digest(recipe_of({"b": 2, "a": 1}))
    assert digest(recipe_of(names)) != digest(recipe_of(names[::-1]))


def test_weights_change_a_recipe_and_a_moved_folder_does_not(tmp_path):
    folder = tmp_path / "here"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "model.safetensors").write_bytes(bytes(1000))
    before = recipe_of(Part(model=str(folder)))
    moved = folder.rename(tmp_path / "there")
    assert recipe_of(Part(model=str(moved))) == before
    (moved / ".cache").mkdir()
    (moved / ".cache" / "download.metadata").write_text("yesterday")
    assert recipe_of(Part(model=str(moved))) == before
    (moved / "sub" / "model.safetensors").write_bytes(bytes(999) + b"\1")
    changed = recipe_of(Part(model=str(moved)))
    assert changed != before
    (moved / "sub" / "model.safetensors").rename(moved / "model.safetensors")
    assert recipe_of(Part(model=str(moved))) not in (before, changed)


def test_a_change_anywhere_in_a_large_file_shows_if_it_is_as_large_as_a_matrix(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "WHOLE_BYTES", 1 << 20)
    path, size = tmp_path / "model.safetensors", 5 * store.SAMPLE_STRIDE + 12_345
    seen = set()
    for start in [None, *range(0, size - store.SAMPLE_STRIDE, 700_001), size - 1]:
        content = bytearray(size)
        if start is not None:
            content[start : start + store.SAMPLE_STRIDE] = b"\1" * len(content[start : start + store.SAMPLE_STRIDE])
        path.write_bytes(content)
        seen.add(fingerprint(path))
    assert len(seen) == 2 + len(range(0, size - store.SAMPLE_STRIDE, 700_001))


def test_a_folder_that_happens_to_be_named_as_a_revision_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = recipe_of(Part(revision="main"))
    (tmp_path / "main").mkdir()
    assert recipe_of(Part(revision="main")) == before


def test_seeds_are_fixed_by_their_key_and_differ_between_keys():
    assert seed_of(0, "cat", 1) == seed_of(0, "cat", 1)
    keys = [(seed, name, sample) for seed in range(10) for name in ("cat", "cat1", "1") for sample in range(30)]
    seeds = {seed_of(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of("1") != seed_of(1)
    assert abs(sum(seed / 2**63 for seed in seeds) / len(seeds) - 0.5) < 4 * (1 / 12 / len(seeds)) ** 0.5


# Ranks


def test_waiting_ends_when_the_shard_lands(tmp_path):
    one, shards = landing(tmp_path), shards_of(IDS, 3)
    one.write(shards[0], ROWS[:3])
    asked = []

    def missing() -> list[tuple[int, str]]:
        asked.append(1)
        if len(asked) == 5:  # the other rank is done by then
            for shard in shards[1:]:
                one.write(shard, ROWS[:1])
        return [(1, shard.name) for shard in shards if not one.has(shard)]

    wait_for(missing, tmp_path, silence_s=60, period_s=0.001)
    assert len(asked) == 5


def test_a_rank_that_never_gives_a_sign_is_dead(tmp_path):
    with pytest.raises(RuntimeError, match=r"rank 1 has shown no sign of life .* owes 2 shards \(a, …\)"):
        wait_for(lambda: [(1, "a"), (1, "b")], tmp_path, silence_s=0.05, period_s=0.01)


def test_a_rank_whose_signs_end_is_dead_and_a_living_one_is_not_blamed(tmp_path):
    with sign_of_life(tmp_path, rank=1, period_s=0.01):
        pass
    with (
        sign_of_life(tmp_path, rank=2, period_s=0.01),
        pytest.raises(RuntimeError, match="rank 1 has shown no sign of life"),
    ):
        wait_for(lambda: [(1, "a"), (2, "b")], tmp_path, silence_s=0.3, period_s=0.01)


def test_a_slow_rank_is_waited_for_as_long_as_it_lives(tmp_path):
    """Longer than silence: the time limit counts from its last sign, not from the beginning."""
    begun = time.monotonic()
    with sign_of_life(tmp_path, rank=1, period_s=0.01):
        wait_for(
            lambda: [(1, "slow")] if time.monotonic() - begun < 1.0 else [], tmp_path, silence_s=0.5, period_s=0.01
        )
    assert time.monotonic() - begun >= 1.0
