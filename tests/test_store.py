"""A landing is whole or absent, named by what made it; ranks tell a dead one from a slow one."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthalign.pairs import TooClose
from synthalign.rewards.clip import CLIPReward
from synthalign.store import (
    Landing,
    Shard,
    digest,
    fingerprint,
    recipe_of,
    seed_of,
    shards_by_id,
    shards_of,
    sign_of_life,
    wait_for,
    write_atomically,
)
from synthalign.store import recipes as names
from synthalign.store.landing import HALVED
from synthalign.store.shards import hash_of
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


def by_id(ids: Sequence[str], size: int, contents: Sequence[int] | None = None) -> list[Shard]:
    """Shards by the ids' hashes; rows are ids."""
    hashes = np.array([hash_of(one) for one in ids], np.uint64)
    held = np.arange(len(ids)) if contents is None else np.array(contents)
    return shards_by_id(hashes, held.astype(np.uint64), size, lambda positions: [ids[i] for i in positions])


MANY = [f"row-{n}" for n in range(1000)]


@pytest.mark.parametrize(("size", "number"), [(1, 1024), (8, 128), (10, 128), (23, 32), (500, 2), (1000, 1), (5000, 1)])
def test_shards_by_id_hold_every_row_once_and_are_about_as_large_as_asked(size, number):
    shards = by_id(MANY, size)
    assert sorted(row for shard in shards for row in shard.rows) == sorted(MANY)
    assert len({shard.place for shard in shards}) == len(shards) <= number
    assert {len(shard.place) - 1 for shard in shards} == {number.bit_length() - 1}
    assert [shard.number for shard in shards] == list(range(len(shards)))
    if size >= 8:  # Poisson's spread
        assert max(len(shard.rows) for shard in shards) < 1000 / number + 5 * (1000 / number) ** 0.5


def test_a_rows_shard_depends_on_its_id_alone_and_its_place_on_its_hash():
    places = {row: shard.place for shard in by_id(MANY, 10) for row in shard.rows}
    assert places == {row: shard.place for shard in by_id(MANY[::-1], 10) for row in shard.rows}
    fewer = {row: shard.place for shard in by_id(MANY[:950], 10) for row in shard.rows}
    assert all(places[row] == place for row, place in fewer.items())
    assert all(f"{hash_of(row):063b}".startswith(place[1:]) for row, place in places.items())
    more = {row: shard.place for shard in by_id(MANY + [f"new-{n}" for n in range(1000)], 10) for row in shard.rows}
    assert all(more[row].startswith(place) for row, place in places.items())  # each shard falls into two


def test_the_order_of_a_table_changes_no_shard_and_what_a_row_holds_changes_its_own():
    contents = list(range(1000))
    shards = by_id(MANY, 50, contents)
    assert shards == by_id(MANY[::-1], 50, contents[::-1])
    changed = by_id(MANY, 50, [7_000, *contents[1:]])
    [other] = [one for one, now in zip(shards, changed, strict=True) if one != now]
    assert "row-0" in other.rows
    assert by_id([], 50) == []


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

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=r"file cannot be written \(No space left"):
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
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=write_often, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() in contents


KEYED = pa.schema({"key": pa.string(), "value": pa.int64()})


def keyed(keys: Sequence[str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": MANY.index(key)} for key in keys]


def test_rows_that_landed_in_other_shards_are_found_by_their_keys(tmp_path):
    few, many = by_id(MANY[:300], 100), by_id(MANY, 100)
    assert [len(shard.place) for shard in (few[0], many[0])] == [3, 4]
    before = Landing(tmp_path, "answer", {}, KEYED)
    for shard in few:
        before.write(shard, keyed(shard.rows))
    after = Landing(tmp_path, "answer", {}, KEYED)
    for shard in many:
        missing = after.missing(shard, shard.rows)
        assert missing == [row for row in shard.rows if MANY.index(row) >= 300]
        after.add(shard, keyed(missing))
        assert after.missing(shard, shard.rows) == [] and not after.has(shard)
        assert after.gather(shard, shard.rows) == keyed(shard.rows)
        assert after.gather(shard, shard.rows[:1], ["value"])[0]["value"] == MANY.index(shard.rows[0])
    for shard in few:  # and back
        assert before.gather(shard, shard.rows) == keyed(shard.rows)
    fewer = Landing(tmp_path, "answer", {}, KEYED)
    [whole] = by_id(MANY[:20], 100)
    assert fewer.missing(whole, whole.rows) == [] and fewer.gather(whole, whole.rows) == keyed(whole.rows)


def test_a_row_that_never_landed_is_missed(tmp_path):
    one = Landing(tmp_path, "answer", {}, KEYED)
    [shard] = by_id(MANY[:3], 5)
    assert one.missing(shard, shard.rows) == list(shard.rows)
    with pytest.raises(KeyError):
        one.gather(shard, shard.rows)


def test_what_landed_before_is_found_by_one_who_has_written_already(tmp_path):
    first, second = by_id(MANY[:20], 10)
    Landing(tmp_path, "answer", {}, KEYED).add(second, keyed(second.rows))
    one = Landing(tmp_path, "answer", {}, KEYED)
    one.write(first, keyed(first.rows))
    assert one.missing(second, second.rows) == []


def test_a_shard_whose_batches_were_halved_says_so(tmp_path):
    one = Landing(tmp_path, "answer", {}, KEYED)
    first, second = by_id(MANY[:20], 10)
    one.write(first, keyed(first.rows), ["VLM: out of memory with 8 rows at once, went on with 4"])
    one.write(second, keyed(second.rows))
    assert one.halved(first, first.rows) == ["VLM: out of memory with 8 rows at once, went on with 4"]
    assert one.halved(second, second.rows) == []
    assert HALVED in pq.read_schema(one.path(first)).metadata
    assert one.gather(first, first.rows) == keyed(first.rows)


def test_a_disk_that_cannot_be_written_is_one_line_and_leaves_nothing_half(tmp_path):
    """A limit on the size of files is what an unprivileged process can have of a full disk."""
    script = f"""
import resource, signal
from pathlib import Path
import pyarrow as pa
from synthalign.store import Landing, shards_of
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
one = Landing(Path({str(tmp_path)!r}), "draw", {{}}, pa.schema({{"image": pa.binary()}}))
first, second = shards_of(["a", "b"], 1)
one.write(first, [{{"image": bytes(100)}}])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
import random
try:
    one.write(second, [{{"image": random.Random(0).randbytes(50_000)}}])
except RuntimeError as error:
    print(error)
print(one.has(first), one.has(second), sorted(path.name for path in one.folder.iterdir()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    line, state = done.stdout.splitlines()
    assert re.search(r"1-\w+\.parquet cannot be written \(File too large\): .* what was written before stays$", line)
    assert state.startswith("True False") and ".part" not in state, done.stderr


def test_a_damaged_shard_is_one_line_that_says_what_to_do(tmp_path):
    one, shard = land(tmp_path), shards_of(IDS, 3)[0]
    path = one.path(shard)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"\.parquet is damaged .*: delete it and run again$") as caught:
        one.read(shard)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path):
    """From the prompts file through two landings: ten times the rows take less than a tenth of their own size more."""
    script = """
import resource, sys, json
from pathlib import Path
from synthalign.pipeline.items import pictures
from synthalign.store import Landing, digest, shards_by_id
from synthalign.store.shards import hash_of
from synthalign.tables import RANKS, PromptFile
folder, number = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
path = folder / "prompts.jsonl"
with path.open("w") as stream:
    for n in range(number):
        stream.write(json.dumps({"id": f"row-{n}", "prompt": f"a cat with {n} cups " * 8, "question": "Eh?"}) + "\\n")
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
before = peak()
rows = PromptFile(path)
contents = rows.numbers(lambda row: int(digest([row.id, row.prompt]), 16))
shards = shards_by_id(rows.numbers(lambda row: hash_of(row.id)), contents, 256, rows.part)
first, second = (Landing(folder, stage, {}, RANKS) for stage in ("draw", "rank"))
for shard in shards:
    items = pictures(shard.rows)
    first.write(shard, [{"key": one.key, "id": one.id, "scores": [1.0, 2.0]} for one in items])
for shard in shards:
    items = pictures(shard.rows)
    assert first.missing(shard, [one.key for one in items]) == []
    second.write(shard, first.gather(shard, [one.key for one in items]))
print(peak() - before, path.stat().st_size / 2**20, sum(len(second.read(shard)) for shard in shards))
"""
    grown = {}
    for number in (10_000, 100_000):
        command = [sys.executable, "-c", script, str(tmp_path / str(number)), str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        grown[number], size, landed = map(float, done.stdout.split())
        assert landed == number
    assert size > 18  # MiB of the longer file
    assert grown[100_000] - grown[10_000] < 12


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
    monkeypatch.setattr(names, "WHOLE_BYTES", 1 << 20)
    path, size = tmp_path / "model.safetensors", 5 * names.SAMPLE_STRIDE + 12_345
    seen = set()
    for start in [None, *range(0, size - names.SAMPLE_STRIDE, 700_001), size - 1]:
        content = bytearray(size)
        if start is not None:
            content[start : start + names.SAMPLE_STRIDE] = b"\1" * len(content[start : start + names.SAMPLE_STRIDE])
        path.write_bytes(content)
        seen.add(fingerprint(path))
    assert len(seen) == 2 + len(range(0, size - names.SAMPLE_STRIDE, 700_001))


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


def test_a_store_that_cannot_be_written_is_one_line_before_anything_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RuntimeError, match=r"alive cannot be written \(Not a directory\)"),
        sign_of_life(tmp_path / "file" / "store", rank=0),
    ):
        pytest.fail("it began")


def test_a_sign_of_life_outlasts_a_disk_that_is_away_for_a_while(tmp_path):
    root = tmp_path / "root"
    with sign_of_life(root, rank=0, period_s=0.01):
        root.rename(tmp_path / "away")
        time.sleep(0.1)
        (tmp_path / "away").rename(root)
        [path] = root.iterdir()
        before, until = path.stat().st_mtime_ns, time.monotonic() + 10
        while path.stat().st_mtime_ns == before and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime_ns > before


def test_a_slow_rank_is_waited_for_as_long_as_it_lives(tmp_path):
    """Longer than silence: the time limit counts from its last sign, not from the beginning."""
    begun = time.monotonic()
    with sign_of_life(tmp_path, rank=1, period_s=0.01):
        wait_for(
            lambda: [(1, "slow")] if time.monotonic() - begun < 1.0 else [], tmp_path, silence_s=0.5, period_s=0.01
        )
    assert time.monotonic() - begun >= 1.0
