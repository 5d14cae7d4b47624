"""The benchmark of answering counts its floor right, and notices who answers or draws something else."""

import importlib
import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from synthalign.vlm import KeyedSampler, reply

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def package(name: str) -> None:
    """Make a folder beside the benchmarks importable, as it is for them."""
    folder = BENCHMARKS / name
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    sys.modules.setdefault(name, importlib.util.module_from_spec(spec))


package("ladder")
package("generation")
check: Any = importlib.import_module("generation.check")
contest: Any = importlib.import_module("generation.contest")
floor: Any = importlib.import_module("generation.floor")
peers: Any = importlib.import_module("generation.peers")
scenes: Any = importlib.import_module("generation.scene")

WIDTH, INNER, LAYERS, WORDS = 64, 176, 3, 512  # of the tiny size
TOWER, PLACES = 64, 16
SYSTEM, SAMPLES, NEW = 5, 3, 16


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("processor")
    return scenes.scene("tiny", dtype=torch.float32, device=torch.device("cpu"), folder=folder)


@pytest.fixture(scope="module")
def plain(scene: Any) -> Any:
    return check.plain(scene, peers.one_at_a_time)


def triangle(tokens: int) -> float:
    return tokens * (tokens + 1) / 2


def test_prompts_are_of_the_lengths_asked_for(scene):
    once = scene.asked_once
    prefix, suffixes = scenes.prompts(once.inputs())
    assert prefix.count(scenes.IMAGE) == PLACES
    assert len(prefix) == 1 + SYSTEM + 1 + PLACES  # the beginning, the words, the user's turn, the image
    assert [len(suffix) for suffix in suffixes] == [len(question.split()) + 1 for question in once.questions]
    for row, suffix in enumerate(suffixes):
        assert once.of(slice(row, row + 1)).inputs()["input_ids"].tolist() == [[*prefix, *suffix]]


@pytest.mark.parametrize("whole", [False, True])
def test_the_floor_is_what_a_hand_counts(scene, whole):
    questions = [len(question.split()) + 1 for question in scene.asked_once.questions]
    before, prefix, said = 1 + SYSTEM + 1, 1 + SYSTEM + 1 + PLACES, NEW - 1
    tokens: float = before + 2 * PLACES + sum(questions)
    seen = (
        triangle(before) + 2 * (PLACES * before + triangle(PLACES)) + sum(q * prefix + triangle(q) for q in questions)
    )
    answered = SAMPLES * len(questions) * said
    answered_seen = SAMPLES * sum(said * (prefix + q) + triangle(said) for q in questions)
    # Of the last layer: keys and values of all, the rest of each question's last token only.
    read, read_seen = (tokens, seen) if whole else (len(questions), sum(prefix + q for q in questions))
    linears, keys = 4 * WIDTH**2 + 3 * WIDTH * INNER, 2 * WIDTH**2

    asked = 2 * len(questions) * WIDTH * WORDS + 2 * (LAYERS - 1) * tokens * linears
    asked += 2 * (tokens * keys + read * (linears - keys)) + 4 * WIDTH * ((LAYERS - 1) * seen + read_seen)
    answers = 2 * answered * (WIDTH * WORDS + LAYERS * linears) + 4 * WIDTH * LAYERS * answered_seen
    states = PLACES + 1  # CLIP's class token
    layer_of_tower = 2 * states * (4 * TOWER**2 + 2 * TOWER * 4 * TOWER) + 4 * states**2 * TOWER
    images = 2 * PLACES * 14 * 14 * 3 * TOWER + 2 * layer_of_tower + 2 * PLACES * (TOWER * WIDTH + WIDTH * WIDTH)
    found = floor.floor(scene, whole=whole)
    assert found == pytest.approx(
        (2 * images, asked, answers), rel=1e-12
    )  # two images; of three layers one is not read
    assert found.total == pytest.approx(2 * images + asked + answers, rel=1e-12)


def test_the_plain_forward_of_one_row_does_the_products_of_its_runs(scene, plain):
    row = scene.of(slice(0, 1))
    asked, answered = floor.needed_runs(row)
    with FlopCounterMode(display=False, depth=3) as counter:
        check.forced(row, plain.texts[0])
    counted = {name.rsplit(".", 1)[-1]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    tokens = sum(run.tokens for run in [*asked, *answered])
    attention = LAYERS * 4 * WIDTH * triangle(tokens)  # which torch's counter does not know on the CPU
    expected = floor.language(row.network, [*asked, *answered], whole=True)
    assert counted["language_model"] + counted["lm_head"] == expected - attention


def test_contenders_answer_alike_and_questions_do_not(scene, plain):
    found = contest.compare(scene, "fp32")
    assert len(found) == len(contest.CONTENDERS) - 1
    assert {one["words"] for one in found.values()} == {1.0}
    assert max(one[token] for one in found.values() for token in ("first", "last")) < 1e-4
    assert len(set(plain.texts)) == len(plain.texts)


def test_a_contender_that_takes_the_other_image_is_noticed(scene, plain):
    def other_image(asked: Any, *, greedy: bool) -> list[str]:
        return peers.one_at_a_time(replace(asked, images=asked.images[::-1]), greedy=greedy)

    found = check.greedy(scene, other_image, plain)
    assert found.words < 0.5
    assert found.first > 0.1
    assert math.isnan(found.last)


def test_a_contender_whose_positions_are_off_by_one_is_noticed(scene, plain):
    def shifted(module: Any, args: Any, settings: dict[str, Any]) -> Any:
        places = settings["position_ids"]
        return args, settings | {"position_ids": torch.where(places > SYSTEM, places + 1, places)}

    language = scene.network.model.language_model
    hook = language.register_forward_pre_hook(shifted, with_kwargs=True)
    try:
        found = check.greedy(scene, peers.one_at_a_time, plain)
    finally:
        hook.remove()
    assert found.first > contest.LOGITS["fp32"]


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"temperature": 0.3}])
def test_samples_of_another_distribution_are_noticed(scene, settings):
    def texts(**how: Any) -> list[str]:
        sampler = KeyedSampler(scene.seeds, **how)
        said = reply(
            scene.network,
            scene.chat,
            scene.images,
            scene.questions,
            max_new_tokens=NEW,
            batch_size=8,
            sampler=sampler,
        )
        return [one.text for one in said]

    contest.drawn("ours", scene, texts())
    with pytest.raises(RuntimeError, match="not drawn from the model's distribution"):
        contest.drawn("ours", scene, texts(**settings))


def test_a_sample_given_twice_is_noticed(scene):
    with pytest.raises(RuntimeError, match="of 24 samples 23 are distinct"):
        contest.drawn("ours", scene, [*map(str, range(23)), "0"])


def test_first_words_of_another_temperature_are_noticed(scene):
    assert min(check.first_words(scene, 512)) > contest.LEAST_P
    assert min(check.first_words(scene, 512, temperature=0.6)) < contest.LEAST_P


def test_a_chi_square_is_what_a_hand_computes():
    drawn = torch.tensor([0] * 26 + [1] * 14)
    probs = torch.tensor([0.5, 0.5], dtype=torch.float64)
    statistic = 2 * 6**2 / 20
    assert check.chi_square(drawn, probs, torch.arange(2)) == pytest.approx(math.erfc(math.sqrt(statistic / 2)))
    assert check.chi_square(drawn, probs, torch.tensor([1, 0])) == pytest.approx(0.0578, abs=1e-4)


def test_an_answer_that_lost_a_token_is_noticed(scene):
    with pytest.raises(RuntimeError, match="an answer of 16 tokens has 2 words"):
        scene.tokens_of("w20 w21")


def test_the_last_line_says_which_bar_holds():
    row = {"name": contest.OURS, "above_floor": 1.5}
    against = {contest.LOOP: (9.0, 8.0, 10.0), contest.COPIED: (2.0, 1.9, 2.1)}
    spread: Any = importlib.import_module("ladder.measure").Spread
    said = contest.verdict([row | {"against": {of: spread(*values) for of, values in against.items()}}])
    assert said.startswith("ours: 9.00 x 'one at a time' (bar 8: holds)")
    assert "(bar 2.2: missed); 1.50 times the floor" in said


def test_all_of_it_runs(tmp_path):
    path = tmp_path / "figures.json"
    options = ["--sizes", "tiny", "--device", "cpu", "--dtype", "fp32", "--rounds", "1", "--loop-step", "6"]
    command = [sys.executable, str(BENCHMARKS / "synthesis.py"), *options, "--draws", "256", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2] == f"The figures are in {path}"
    assert done.stdout.splitlines()[-1].startswith("ours: ")
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["rows"]] == list(contest.CONTENDERS)
    assert {len(row["rounds"]) for row in found["rows"]} == {1}
