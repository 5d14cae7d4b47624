"""What is damaged is refused in one line, and pickles are not run."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_runs import refusal, write_config
from safetensors.torch import load_file, save_file

from synthalign.checkpoints import INDEX
from synthalign.cli import main
from synthalign.dpo.policy import load_policy
from synthalign.export import write


class Trap:
    """A pickle that leaves a mark when it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_an_adapter_that_is_a_pickle_is_refused_and_not_run(run, capsys):
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    torch.save(tensors | {"trap": Trap(run / "sprung")}, run / "adapter" / "adapter_model.bin")
    main(["export", str(run)])  # it lies beside what is read
    assert not (run / "export" / "adapter" / "adapter_model.bin").exists()
    (run / "adapter" / "adapter_model.safetensors").unlink()
    capsys.readouterr()
    for flags in ([], ["--merged"]):
        line = refusal(capsys, run, run.parent / "out", *flags)
        assert line.endswith("has no adapter_model.safetensors; adapter_model.bin is a pickle, and is not read")
    assert not (run / "sprung").exists() and not (run.parent / "out").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_wants_to_run_code_is_refused_and_not_run(zipped, run, capsys):
    path = run / "checkpoints" / "best.ckpt"
    saved = torch.load(path, weights_only=True) | {"callbacks": Trap(run / "sprung")}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    assert "a pickle that wants to run" in refusal(capsys, path)
    assert not (run / "sprung").exists()
    torch.load(path, weights_only=False)  # it would have worked
    assert (run / "sprung").exists()


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_half_a_checkpoint_is_refused(part, run, capsys):
    path = run / "checkpoints" / "best.ckpt"
    os.truncate(path, int(path.stat().st_size * part))
    assert f"{path} cannot be read as a checkpoint of torch: it is damaged, or something else" in refusal(capsys, path)


def test_a_checkpoint_with_a_flipped_bit_is_refused(run, capsys):
    path = run / "checkpoints" / "best.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "it is damaged (in best/data/" in refusal(capsys, path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"megatron_config": {"x": 1}, "megatron_core": "trap"},
            "its megatron_config makes PEFT import a module that the adapter names: refused",
        ),
        ({"target_modules": ".*("}, "the adapter fits no layer of"),
        ({"peft_type": "MYSTERY"}, "the adapter fits no layer of"),
        ({"r": "many"}, "the adapter fits no layer of"),
        ({"rank": 3}, "the adapter fits no layer of"),
        ({"peft_type": None}, "is no adapter's configuration: it has no peft_type"),
    ],
)
def test_a_strange_configuration_is_refused(settings, said, run, capsys):
    path = run / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert said in refusal(capsys, run)


def test_half_an_adapter_is_refused(run, capsys):
    path = run / "adapter" / "adapter_model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    assert f"{path} cannot be read: " in refusal(capsys, run)


def test_an_adapter_of_no_finite_numbers_is_refused(run, capsys):
    path = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, path)
    assert f"{name} holds values that are no finite numbers" in refusal(capsys, run)


@pytest.mark.parametrize(
    "damage",
    [
        {"stage": None},
        {"before": [1]},
        {"before": {"pope/accuracy": True}},
        {"after": {"pope/accuracy": "x"}},
        {"after": 3},
        {"history": [{"step": 7}]},
        {"history": [{"step": 7, "metrics": {"pope/accuracy": None}}]},
        {"history": [[]]},
        {"history": 3},
        {"evals": ["pope"]},
        {"evals": {"pope": 3}},
    ],
    ids=str,
)
def test_damaged_results_are_one_line(damage, run, capsys):
    whole: dict[str, Any] = {"stage": "fit", "before": None, "after": {}, "history": [], "evals": {}}
    (run / "results.json").write_text(json.dumps(whole))
    write(run)
    left = {name: value for name, value in (whole | damage).items() if value is not None or name == "before"}
    (run / "results.json").write_text(json.dumps(left))
    assert "results.json is not what a run writes: " in refusal(capsys, run)


def cut(model: Path) -> None:
    os.truncate(one(model), one(model).stat().st_size // 2)


def lose(model: Path) -> None:
    one(model).unlink()


def forget(model: Path) -> None:
    tensors = load_file(one(model))
    tensors.pop(min(tensors))
    save_file(tensors, one(model), metadata={"format": "pt"})


def spoil(model: Path) -> None:
    tensors = load_file(one(model))
    tensors[min(tensors)].flatten()[0] = torch.inf
    save_file(tensors, one(model), metadata={"format": "pt"})


def lead_out(model: Path) -> None:
    listed = json.loads((model / INDEX).read_text())
    listed["weight_map"][min(listed["weight_map"])] = "../outside.safetensors"
    save_file({"x": torch.zeros(1)}, model.parent / "outside.safetensors")
    (model / INDEX).write_text(json.dumps(listed))


def one(model: Path) -> Path:
    return sorted(model.glob("*.safetensors"))[-1]


@pytest.mark.parametrize(
    ("damage", "shards", "said"),
    [
        (cut, False, " cannot be read: "),
        (cut, True, " cannot be read: "),
        (lose, False, ": the model in it is not whole"),
        (lose, True, ": the model in it is not whole"),
        (forget, True, f" is not where {INDEX} says: the model in it is not whole"),
        (spoil, False, " holds values that are no finite numbers: this run has failed"),
        (lead_out, True, " has no ../outside.safetensors: the model in it is not whole"),
    ],
)
def test_a_damaged_model_is_refused(damage, shards, said, tiny_llava, tmp_path, capsys):
    run = write_config(tmp_path / "fit", tiny_llava, lora=None)
    network = load_policy(str(tiny_llava))
    network.save_pretrained(run / "model", max_shard_size="100KB" if shards else "1GB")
    assert (run / "model" / INDEX).exists() == shards
    whole = write(run).path
    assert {path.name for path in whole.glob("model*")} == {path.name for path in (run / "model").glob("model*")}
    shutil.rmtree(whole.parent)
    damage(run / "model")
    assert said in refusal(capsys, run)
    assert not whole.parent.exists()
