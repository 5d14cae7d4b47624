"""Mistakes are one line, pickles are not run, and nothing is left of an export that failed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from exported_runs import write_config, write_run
from safetensors.torch import load_file, save_file

from synthalign.cli import main
from synthalign.export import write


class Trap:
    """A pickle that leaves a mark when it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def original(tiny_llava, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "fit"
    write_run(folder, tiny_llava)
    return folder


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "fit")


def refusal(capsys, *args) -> str:
    """The one line that a command ends in."""
    with pytest.raises(SystemExit) as stopped:
        main(["export", *map(str, args)])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == ""
    *before, line = said.err.splitlines()
    assert line.startswith("synthalign: error: ") and not any("Traceback" in one for one in before)
    return line


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("nowhere", "there is no nowhere: name a run's folder, or a checkpoint in it"),
        ("empty", "empty is not of a run: there is no config.yaml in empty or ."),
        ("bare", "bare has no adapter/ and no model/: SaveAdapter writes it after every epoch of a fit"),
        ("fit/config.yaml", "fit/config.yaml is no checkpoint: name a run's folder, or a file '*.ckpt' in it"),
        ("sharded/checkpoints/x.ckpt", "is a sharded checkpoint, whose metadata is a pickle"),
        ("strange", "strange/config.yaml is no run's configuration: it has no model.init_args.policy"),
        ("moved", "no model folder at './gone' (seen from"),
        ("moved", "; say with --base where the run's policy is now, or what it is on the hub"),
        ("moved --base ./there", "no model folder at './there'"),
        ("fit --dtype float16", "--dtype is that of a --merged model"),
        ("fit --shard-gb 0 --merged", "a file of weights must be allowed some size, got 0.0 GB"),
        ("fit fit", "fit exists already, and it is no older export: name another folder, or remove it"),
        ("fit fit/config.yaml", "fit/config.yaml exists already, and it is no folder"),
        ("fit --push here", "'here' is no name of a model on the hub: say owner/name"),
        ("fit --private", "--private says how to --push"),
        ("fit --results nowhere", "there is no nowhere: name a results.json, or the folder of a test"),
    ],
)
def test_a_mistake_is_one_line(args, said, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_config(tmp_path / "bare", "owner/name")
    shutil.copy(tmp_path / "bare" / "config.yaml", tmp_path / "kept.yaml")
    (write_config(tmp_path / "sharded", "owner/name") / "checkpoints" / "x.ckpt").mkdir(parents=True)
    (tmp_path / "sharded" / "checkpoints" / "x.ckpt" / ".metadata").touch()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.yaml").write_text("a: 1")
    shutil.copytree(run / "adapter", write_config(tmp_path / "moved", "./gone") / "adapter")
    shutil.rmtree(run / "checkpoints")
    if args == "bare":
        shutil.rmtree(run / "adapter")
        shutil.rmtree(tmp_path / "moved")
    assert said in refusal(capsys, *args.split())


def test_a_run_without_an_adapter_names_what_may_be_meant(run, tmp_path, tiny_llava, capsys):
    shutil.rmtree(run / "adapter")
    assert f"did you mean {run / 'checkpoints' / 'best.ckpt'}?" in refusal(capsys, run)
    shutil.copytree(run / "checkpoints", tmp_path / "x" / "adapter")
    write_config(tmp_path / "x", tiny_llava)
    assert f"did you mean {tmp_path / 'x'}?" in refusal(capsys, write_config(tmp_path / "test", tiny_llava))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden_size": 64}, "it has (4, 64), where the base takes (4, 128)"),
        ({}, "it has nothing, where the base takes"),
    ],
)
def test_an_adapter_of_another_base_is_refused(settings, said, merged, run, tmp_path, capsys):
    base = tiny.build_llava(tmp_path / "base", **settings)
    if not settings:  # a layer more
        config = json.loads((base / "config.json").read_text())
        config["text_config"]["num_hidden_layers"] = 3
        (base / "config.json").write_text(json.dumps(config))
    line = refusal(capsys, run, tmp_path / "out", "--base", base, *(["--merged"] if merged else []))
    assert "the adapter is not of" in line and said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "fit"]


def test_an_adapter_with_layers_that_the_base_lacks_is_refused(run, tmp_path, tiny_llava, capsys):
    base = shutil.copytree(tiny_llava, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (base / "config.json").write_text(json.dumps(config))
    assert "where the base takes nothing" in refusal(capsys, run, "--base", base)


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
    assert f"{path} cannot be read as a checkpoint: it is damaged, or something else" in refusal(capsys, path)


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
            "which makes PEFT import a module that it names: refused",
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


def test_a_merged_weight_outside_its_types_range_is_refused(run, tmp_path, capsys):
    path = run / "adapter" / "adapter_model.safetensors"
    save_file({name: 300 * one for name, one in load_file(path).items()}, path)
    line = refusal(capsys, run, tmp_path / "out", "--merged", "--dtype", "float16")
    assert "leaves the range of torch.float16: give --dtype bfloat16 or float32" in line
    assert not (tmp_path / "out").exists()


def test_an_older_export_is_replaced_and_anything_else_stays(run, tmp_path, capsys):
    out = write(run, tmp_path / "out").path
    (out / "README.md").write_text("mine")
    write(run, out, merged=True)
    assert "mine" not in (out / "README.md").read_text() and not (out / "adapter_config.json").exists()
    (out / "notes.txt").touch()
    before = sorted(out.iterdir())
    line = refusal(capsys, run, out)
    assert f"{out} exists already, and notes.txt in it is no part of an older export" in line
    assert sorted(out.iterdir()) == before
    (tmp_path / "empty").mkdir()
    (tmp_path / ".empty.part" / "of a killed export").mkdir(parents=True)
    write(run, tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "fit", "out"]


def test_an_export_that_fails_leaves_the_older_one_and_nothing_else(run, tmp_path, monkeypatch, capsys):
    out = write(run, tmp_path / "out").path
    before = {path: path.read_bytes() for path in out.iterdir()}
    (run / "dropped.jsonl").write_text("{")  # what the card reads, at the end
    assert "dropped.jsonl is not what a run writes" in refusal(capsys, run, out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit", "out"]


def test_a_disk_that_refuses_is_one_line(run, capsys):
    assert "cannot be written (No such file or directory)" in refusal(capsys, run, "/proc/nowhere/out")


def test_without_the_hub_nothing_is_pushed_and_the_files_stay(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(run), str(tmp_path / "out"), "--push", "owner/name"])
    assert "not pushed to owner/name (" in (said := capsys.readouterr().err)
    assert said.splitlines()[-1].endswith(f"the files are in {tmp_path / 'out'}")
    assert (tmp_path / "out" / "adapter_config.json").exists()
