"""One process that accumulates, two under ddp and two under FSDP2 learn the same thing, and evaluate on the way."""

import csv
import json

import pytest
import torch
from forked import TESTS, run_script
from safetensors.torch import load_file
from strategy_runs import write

from synthalign.training.fsdp1 import FSDP1Strategy

STEPS = 4  # 8 pairs, two batches of 2 a step, two epochs


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_llava, request):
    folder = write(tmp_path_factory.mktemp("runs"), tiny_llava)
    proving = any(item.get_closest_marker("prove") for item in request.session.items)
    done = run_script(str(TESTS / "strategy_runs.py"), str(folder), *(["all"] if proving else []))
    assert done.returncode == 0, done.stderr
    assert "UserWarning" not in done.stderr  # of which PyTorch has some for those who spread weights amiss
    return folder


def logged(run, name):
    with (run / "fit" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def weights(run):
    files = [*run.glob("fit/adapter/*.safetensors"), *run.glob("fit/model/*.safetensors")]
    assert len(files) == 1
    return load_file(files[0])


PAIRED = [
    ("lora-alone", "lora-ddp"),
    ("lora-alone", "lora-fsdp2"),
    ("lora-alone", "lora-fsdp1"),
    ("whole-alone", "whole-fsdp2"),
    pytest.param("whole-alone", "whole-fsdp1", marks=pytest.mark.prove),
]


@pytest.mark.parametrize(("alone", "together"), PAIRED)
def test_the_losses_are_the_same(alone, together, runs):
    for name in ("train/loss", "train/reward_margin", "train/chosen_tokens"):
        expected = logged(runs / alone, name)
        assert len(expected) == STEPS and len(set(expected)) > 1
        assert logged(runs / together, name) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("alone", "together"), PAIRED)
def test_what_is_saved_is_the_same(alone, together, runs):
    expected, found = weights(runs / alone), weights(runs / together)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("together", ["lora-ddp", "lora-fsdp2", "lora-fsdp1", "whole-fsdp2"])
def test_the_ranks_see_pairs_of_their_own(together, runs):
    first, second = (json.loads((runs / together / f"rank-{rank}.json").read_text())["steps"] for rank in (0, 1))
    assert len(first) == len(second) == STEPS
    for epoch in (slice(0, STEPS // 2), slice(STEPS // 2, STEPS)):
        here, there = ({pair for batch in steps[epoch] for pair in batch} for steps in (first, second))
        assert len(here) == len(there) == 4 and not here & there


@pytest.mark.parametrize(("alone", "together"), PAIRED)
def test_the_model_answers_the_same_before_and_after_each_epoch(alone, together, runs):
    def replies(run):
        files = [runs / run / "fit" / "samples" / f"epoch-{epoch:03d}" / "pope.jsonl" for epoch in (0, 1, 2)]
        return [[json.loads(line)["reply"] for line in file.read_text().splitlines()] for file in files]

    assert replies(alone) == replies(together)
    assert len({tuple(answers) for answers in replies(alone)}) > 1  # it is another model in the end


@pytest.mark.parametrize("run", ["lora-ddp", "lora-fsdp2", "lora-fsdp1"])
def test_a_checkpoint_is_one_file_of_the_adapter_alone(run, runs):
    saved = torch.load(runs / run / "fit" / "checkpoints" / "step=3.ckpt", weights_only=True)
    shapes = {name: value.shape for name, value in weights(runs / run).items()}
    assert all(".lora_" in name for name in saved["state_dict"])
    assert sorted(value.shape for value in saved["state_dict"].values()) == sorted(shapes.values())


@pytest.mark.parametrize(
    ("resumed", "undisturbed"),
    [
        ("lora-fsdp2-resumed", "lora-fsdp2"),
        ("lora-fsdp2-from-ddp", "lora-fsdp2"),
        pytest.param("lora-ddp-from-fsdp2", "lora-ddp", marks=pytest.mark.prove),
        pytest.param("lora-fsdp2-from-shards", "lora-fsdp2", marks=pytest.mark.prove),
    ],
)
def test_a_run_goes_on_from_inside_an_epoch_also_under_another_strategy(resumed, undisturbed, runs):
    expected = logged(runs / undisturbed, "train/loss")[3:]
    assert logged(runs / resumed, "train/loss") == pytest.approx(expected, rel=1e-6, abs=1e-9)
    found = weights(runs / resumed)
    for name, value in weights(runs / undisturbed).items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=name)
    if resumed == "lora-fsdp2-resumed":  # by the same arithmetic from the same numbers
        assert all(torch.equal(found[name], value) for name, value in weights(runs / undisturbed).items())


@pytest.mark.prove
@pytest.mark.parametrize("sharded", ["clipped-fsdp2", "clipped-fsdp1"])
def test_gradients_are_clipped_by_the_norm_over_all_ranks(sharded, runs):
    found = weights(runs / sharded)
    for name, value in weights(runs / "clipped-ddp").items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_what_the_older_fsdp_saves_is_nothing_to_go_on_from(runs):
    saved = torch.load(runs / "lora-fsdp1" / "fit" / "checkpoints" / "step=3.ckpt", weights_only=True)
    assert "optimizer_states" not in saved
    with pytest.raises(ValueError, match=r"^a run cannot go on from here.ckpt .* take trainer.strategy model_parallel"):
        FSDP1Strategy().load_checkpoint("here.ckpt")
