"""A run that is killed at any moment and started again ends with the pairs of a run that never was."""

import json
import random
import shutil
import time
from collections import Counter
from multiprocessing.connection import wait
from pathlib import Path

import pytest
from small_synthesis import prompt_rows, run_ranks, shard_bytes, small_synthesis, stamps, start_ranks, write_prompts

from synthalign.pipeline import Synthesis

NUM_PROMPTS = 10  # in shards of one or two
STAGES = ["draw", "rank", "pick", "answer", "answer again", "score", "pair"]


@pytest.fixture(scope="module")
def models(tiny_llava: Path, tiny_clip: Path, tiny_reward: Path) -> dict[str, str]:
    return {"llava": str(tiny_llava), "clip": str(tiny_clip), "reward": str(tiny_reward)}


@pytest.fixture(scope="module")
def undisturbed(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """A run to its end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_prompts(folder / "prompts.jsonl", prompt_rows(NUM_PROMPTS, 1))
    synthesis = small_synthesis(folder, models, shard_size=1)
    run_ranks(synthesis)
    return synthesis


@pytest.fixture
def mine(undisturbed: Synthesis, models: dict[str, str], tmp_path: Path) -> Synthesis:
    """The same synthesis on an empty store."""
    shutil.copy(undisturbed.prompts, tmp_path / "prompts.jsonl")
    return small_synthesis(tmp_path, models, shard_size=1)


def landed(synthesis: Synthesis) -> list[int]:
    """How many shards of each stage have landed."""
    return [sum(stage.landing.has(shard) for shard in stage.shards) for stage in synthesis.stages]


def kill_within(synthesis: Synthesis, stage: int) -> None:
    """Start a run on an empty store and kill it when the first shard of a stage has landed."""
    shutil.rmtree(synthesis.store, ignore_errors=True)
    [process] = start_ranks(synthesis)
    while not landed(synthesis)[stage] and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()


def owed(synthesis: Synthesis, undisturbed: Synthesis) -> Counter[str]:
    """How many rows each kind of part is still to be asked for, by what has not landed."""
    names = ["Renderer", "CLIPReward", None, "VLM", "VLM", "SequenceClassificationReward", None]
    rows: Counter[str] = Counter()
    for name, mine, whole in zip(names, synthesis.stages, undisturbed.stages, strict=True):
        for shard in mine.shards:
            if name is None or mine.landing.has(shard):
                continue
            number = (
                sum(bool(one["text"].strip()) for row in whole.landing.read(shard) for one in row.get("candidates", []))
                if name.startswith("Sequence")
                else len(shard.rows) * 2
            )  # images of a prompt, samples of its question
            rows[name] += number
    return rows


def restart_and_compare(synthesis: Synthesis, undisturbed: Synthesis, world_size: int = 1) -> None:
    """Run to the end: what had landed stays and is not computed again, and all is as if nothing had happened."""
    store = Path(synthesis.store)
    before, expected = stamps(store), owed(synthesis, undisturbed)
    counts = store.parent / "counts"
    counts.mkdir(exist_ok=True)
    run_ranks(synthesis, world_size, counts)
    assert sum((Counter(json.loads(path.read_text())) for path in counts.glob("*.json")), Counter()) == +expected
    assert {name: stamp for name, stamp in stamps(store).items() if name in before} == before
    assert shard_bytes(store) == shard_bytes(Path(undisturbed.store))
    assert synthesis.table.read_bytes() == undisturbed.table.read_bytes()


@pytest.mark.parametrize("stage", range(len(STAGES)), ids=STAGES)
def test_a_run_killed_within_a_stage_goes_on_where_it_was(stage, mine, undisturbed):
    for _ in range(5):  # a busy machine may look too late
        kill_within(mine, stage)
        if landed(mine)[stage] < len(mine.stages[stage].shards):
            break
    counts = landed(mine)
    every = [len(one.shards) for one in mine.stages]
    assert counts[:stage] == every[:stage]
    assert 0 < counts[stage] < every[stage]
    assert counts[stage + 1 :] == [0] * (len(STAGES) - stage - 1)
    assert not mine.table.exists()
    restart_and_compare(mine, undisturbed)


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def ranks(request: pytest.FixtureRequest, undisturbed: Synthesis) -> tuple[int, float]:
    """A number of ranks, and how long they take, seconds."""
    begun = time.monotonic()
    shutil.rmtree(undisturbed.store)
    run_ranks(undisturbed, request.param)
    return request.param, time.monotonic() - begun


@pytest.mark.prove
@pytest.mark.parametrize("seed", range(20))
def test_a_run_killed_at_any_moment_goes_on_where_it_was(seed, ranks, mine, undisturbed):
    """The moments are drawn over the length of a run; with two ranks, each dies at its own."""
    world_size, length_s = ranks
    rng = random.Random(f"{seed} {world_size}")
    begun = time.monotonic()
    alive = start_ranks(mine, world_size)
    for moment in sorted(rng.uniform(0, length_s) for _ in alive):
        victim = alive.pop(rng.randrange(len(alive)))
        wait([victim.sentinel], timeout=max(0.0, begun + moment - time.monotonic()))
        victim.kill()
        victim.join()
    restart_and_compare(mine, undisturbed, world_size)
