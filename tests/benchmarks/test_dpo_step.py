"""The benchmark of a step counts its floor right, and times nothing that computes something else than TRL."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.features import image_features
from synthalign.dpo.layouts import Tree, Trie
from synthalign.dpo.logps import pair_logps
from synthalign.dpo.policy import adapters_off

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LADDER = BENCHMARKS / "ladder"
spec = importlib.util.spec_from_file_location(
    "ladder", LADDER / "__init__.py", submodule_search_locations=[str(LADDER)]
)
assert spec is not None
sys.modules["ladder"] = importlib.util.module_from_spec(spec)
floor: Any = importlib.import_module("ladder.floor")
measure: Any = importlib.import_module("ladder.measure")
ours: Any = importlib.import_module("ladder.ours")
peers: Any = importlib.import_module("ladder.peers")
scene: Any = importlib.import_module("ladder.scene")

WIDTH, INNER, LAYERS, WORDS, RANK = 64, 176, 3, 512, 4  # of the tiny size
TOWER, PLACES = 64, 16


def stage(one_image: bool = False) -> Any:
    """A tiny scene, its batch put together without TRL."""
    size = scene.SIZES["tiny"]
    torch.manual_seed(0)
    network = scene.hf.AutoModelForImageTextToText.from_config(size.config()).requires_grad_(False)
    processor, rows = scene.processor(size, network.config), scene.rows(size, one_image=one_image)
    images = [row["images"] for row in rows]
    texts = [f"{row['prompt']} {row[side]}" for side in ("chosen", "rejected") for row in rows]
    collated = processor(images=2 * images, text=texts)
    spoken = torch.zeros_like(collated["input_ids"])
    for number, row in enumerate(2 * rows):
        end = int(collated["attention_mask"][number].sum())
        side = "chosen" if number < len(rows) else "rejected"
        spoken[number, end - len(row[side].split()) : end] = 1
    collated["completion_mask"] = spoken
    return scene.Scene(network, RANK, collated, scene.as_ours(collated, [seed for (seed,) in images]))


def lengths(batch: PreferenceBatch) -> list[tuple[int, int, int]]:
    sides = zip(batch.prompts, batch.chosen, batch.rejected, strict=True)
    return [(len(prompt["input_ids"]), len(chosen), len(rejected)) for prompt, chosen, rejected in sides]


def triangle(tokens: int) -> float:
    return tokens * (tokens + 1) / 2


def test_a_batch_taken_apart_is_the_rows_that_it_was():
    made = stage()
    batch = made.batch
    assert lengths(batch) == [(1 + PLACES + question, *sides) for question, *sides in scene.SIZES["tiny"].lengths[:2]]
    for number in range(2):
        row = torch.cat([batch.prompts[number]["input_ids"], batch.rejected[number]])
        assert torch.equal(row, made.collated["input_ids"][2 + number][: len(row)])
    assert torch.equal(batch.images["pixel_values"], made.collated["pixel_values"][:2])
    assert not torch.equal(batch.images["pixel_values"][0], batch.images["pixel_values"][1])
    shared = stage(one_image=True).batch
    assert (len(shared.images["pixel_values"]), shared.image_of) == (1, [0, 0, 0, 0])


@pytest.mark.parametrize("whole", [False, True])
def test_the_floor_is_what_a_hand_counts(whole):
    made = stage()
    network = ours.network_of(made)
    found = floor.floor(network, made.batch, whole=whole)

    pairs = lengths(made.batch)
    tokens = sum(p + c - 1 + r - 1 for p, c, r in pairs)
    read = tokens if whole else sum(1 + c - 1 + r - 1 for _, c, r in pairs)
    inputs_outputs = {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "o": (WIDTH, WIDTH)}
    inputs_outputs |= {"gate": (WIDTH, INNER), "up": (WIDTH, INNER), "down": (INNER, WIDTH)}
    plain = low = back = 0.0
    for layer in range(LAYERS):
        for name, (ins, outs) in inputs_outputs.items():
            count = read if layer == LAYERS - 1 and name not in "kv" else tokens
            plain += 2 * count * ins * outs
            low += 2 * count * RANK * (ins + outs)
            if layer == 0 and name in "qkv":
                back += 2 * count * RANK * (2 * outs + ins)
            else:
                back += 2 * count * (ins * outs + 2 * RANK * (ins + outs))
    seen = sum(triangle(p + c - 1) + (r - 1) * p + triangle(r - 1) for p, c, r in pairs)
    of_read = sum(p + (c - 1) * p + triangle(c - 1) + (r - 1) * p + triangle(r - 1) for p, c, r in pairs)
    attention = 4 * WIDTH * (seen * (LAYERS - 1) + (seen if whole else of_read))
    head = 2 * sum(c + r for _, c, r in pairs) * WIDTH * WORDS
    states = PLACES + 1  # CLIP's class token
    layer_of_tower = 2 * states * (4 * TOWER * TOWER + 2 * TOWER * 4 * TOWER) + 4 * states**2 * TOWER
    patches = 2 * PLACES * 14 * 14 * 3 * TOWER
    projector = 2 * PLACES * (TOWER * WIDTH + WIDTH * WIDTH)
    images = 2 * (patches + 2 * layer_of_tower + projector)  # two images; of three layers the last is not read
    cached = plain + low + attention + back + 2.5 * attention + 2 * head
    assert found.cached == pytest.approx(cached, rel=1e-12)
    assert found.cached_reference == pytest.approx(images + cached, rel=1e-12)
    assert found.on_the_fly == pytest.approx(images + plain + attention + head + cached, rel=1e-12)


@pytest.mark.parametrize(("one_image", "layout"), [(False, Tree()), (True, Trie())])
def test_our_forward_does_the_floors_products_and_no_others(one_image, layout):
    made = stage(one_image)
    network = ours.network_of(made)
    runs = list(floor.needed_runs(made.batch))
    frozen, adapted, _ = floor.language(network, runs, whole=False)
    attention = floor.attention(network, runs, whole=False)  # which torch's counter does not know on the CPU
    head = 2 * sum(c + r for _, c, r in lengths(made.batch)) * WIDTH * WORDS
    laid, features = layout(network, made.batch), image_features(network, made.batch)
    with torch.no_grad():
        with FlopCounterMode(display=False) as policy:
            pair_logps(network, laid, features)
        with adapters_off(network), FlopCounterMode(display=False) as reference:
            pair_logps(network, laid, features)
    assert policy.get_total_flops() == adapted - attention + head
    assert reference.get_total_flops() == frozen - attention + head


def test_every_rung_gives_what_full_logits_give():
    for one_image, rungs in ((False, ours.PAIRS), (True, ours.ONE_IMAGE)):
        made = stage(one_image)
        network = ours.network_of(made)
        plain = measure.Contender(network, peers.full_logits(network, made.collated), ours.adamw(network))
        expected = measure.given(plain)
        assert abs(expected.loss - 0.6931) > 1e-4, "adapters that are where they begin compare nothing"
        for rung in rungs.values():
            network = ours.network_of(made, fused=rung.fused, checkpointing=rung.checkpointing)
            one = measure.Contender(network, ours.step_of(network, rung, made), ours.adamw(network))
            assert max(measure.errors(measure.given(one), expected)) < 1e-5


def test_a_wrong_gradient_is_told_from_a_right_one():
    right = measure.Given(0.7, {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])})
    wrong = measure.Given(0.77, {"a": torch.tensor([3.0, 0.5]), "b": torch.tensor([4.0])})
    assert measure.errors(wrong, right) == (pytest.approx(0.1), pytest.approx(0.1))
    with pytest.raises(ValueError, match="gradients of others"):
        measure.errors(measure.Given(0.7, {"a": torch.zeros(2)}), right)


def test_ratios_are_taken_round_by_round():
    assert measure.ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == (2.0, 1.0, 3.0)


def test_beside_trl_all_of_it_runs(tmp_path):
    pytest.importorskip("trl", reason="the `bench` extra is not installed")
    path = tmp_path / "figures.json"
    options = ["--sizes", "tiny", "--device", "cpu", "--rounds", "1", "--dtype", "fp32", "--measure", "time"]
    command = [sys.executable, str(BENCHMARKS / "dpo_step.py"), *options, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"The figures are in {path}"
    pairs, one_image = json.loads(path.read_text())["times"]
    assert [len(pairs["rows"]), len(one_image["rows"])] == [3 + len(ours.PAIRS), 1 + len(ours.ONE_IMAGE)]
    for row in (*pairs["rows"], *one_image["rows"]):
        assert max(row["errors"]) < 1e-5, row["name"]
