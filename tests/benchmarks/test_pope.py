"""The benchmark of polling notices who answers something else, counts each contender's own floor, and runs."""

import importlib
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

for name in ("ladder", "generation", "polling"):
    folder = BENCHMARKS / name
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    sys.modules.setdefault(name, importlib.util.module_from_spec(spec))

scenes: Any = importlib.import_module("generation.scene")
floor: Any = importlib.import_module("generation.floor")
contest: Any = importlib.import_module("polling.contest")
spread: Any = importlib.import_module("ladder.measure").Spread


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, asked = tmp_path_factory.mktemp("processor"), contest.ASKED["tiny"]
    return scenes.scene("tiny", dtype=torch.float32, device=torch.device("cpu"), folder=folder, asked=asked)


@pytest.mark.parametrize("wrong", [contest.OURS, contest.FIRST, contest.FIRST_KEPT])
def test_one_that_takes_the_other_image_is_noticed(scene, wrong):
    def other_image(asked: Any, *, greedy: bool = True) -> list[str]:
        return contest.ours(replace(asked, images=asked.images[::-1]))

    everyone = contest.contenders()
    one = {wrong: everyone[wrong]._replace(answer=other_image)}
    with pytest.raises(RuntimeError, match=f"{wrong}, fp32: greedily it answers something else"):
        contest.compare(scene, "fp32", one)


def test_each_split_asks_a_third_about_every_image_and_rows_come_back_in_order(scene, monkeypatch):
    asked: list[Any] = []

    def echoed(scene: Any) -> list[str]:
        asked.append(scene)
        return list(scene.questions)

    monkeypatch.setattr(contest, "ours", echoed)
    assert contest.a_split_at_a_time(scene) == list(scene.questions)
    assert [sorted(Counter(map(id, one.images)).values()) for one in asked] == [[2, 2]] * 3


def test_the_floor_of_kept_features_has_no_images_and_that_of_first_tokens_no_more_of_them(scene):
    whole = contest.needs(scene, encodes=True)
    assert whole == floor.floor(scene)
    assert contest.needs(scene, encodes=False) == whole._replace(images=0.0)
    assert contest.needs(replace(scene, new_tokens=1), encodes=True) == whole._replace(answers=0.0)
    assert min(whole) > 0


def test_the_last_lines_say_which_bar_holds():
    against = {contest.LOOP: 10.5, contest.COPIED: 1.1, contest.APART: 2.5}
    row = {"above_floor": 1.5, "against": {of: spread(ratio, 0, 99) for of, ratio in against.items()}}
    lines = contest.verdict([row | {"name": name} for name in contest.BARS]).splitlines()
    assert lines[0].startswith(
        "ours: 10.50 x 'one at a time' (bar 10: holds), 1.10 x 'prefix once, cache copied' (bar 1"
    )
    assert "(bar 1.2: missed); 1.50 times the floor" in lines[0]
    assert "(bar 11: missed)" in lines[1] and "(bar 14: missed)" in lines[2] and "(bar 14: missed)" in lines[3]
    assert lines[4] == "three splits at once: 2.50 x one after another"


def test_all_of_it_runs(tmp_path):
    path = tmp_path / "figures.json"
    options = ["--sizes", "tiny", "--device", "cpu", "--dtype", "fp32", "--rounds", "1", "--loop-step", "4"]
    command = [sys.executable, str(BENCHMARKS / "pope.py"), *options, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-6] == f"The figures are in {path}"
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["rows"]] == list(contest.contenders())
    assert {len(row["rounds"]) for row in found["rows"]} == {1}
    assert {one["words"] for one in found["greedy"].values()} == {1.0}
    assert max(one[token] for one in found["greedy"].values() for token in ("first", "last")) < 1e-4
