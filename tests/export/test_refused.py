"""Mistakes are one line, said before anything is written."""

import json
import shutil

import pytest
import tiny
from exported_runs import refusal, write_config
from safetensors.torch import load_file, save_file

from synthalign.cli import main


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
        (
            "fit --push owner/name",
            "an adapter on the hub names its base, and this one's is a folder of this machine, /",
        ),
        ("fit --push owner/name", ": say with --base-name OWNER/NAME what that is on the hub"),
        ("fit --base-name ./there", "'./there' is no name of a model on the hub: say owner/name"),
        ("fit --base a/b --base-name c/d", "--base-name is for a base in a folder, and this one is a/b of the hub"),
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


def test_settings_that_make_no_adapter_are_refused_where_a_checkpoint_needs_them(run, tiny_llava, capsys):
    shutil.rmtree(run / "adapter")
    for lora in ({"rank": 3}, {"r": 0}, None, 3):
        write_config(run, tiny_llava, lora=lora)
        line = refusal(capsys, run / "checkpoints" / "best.ckpt")
        assert "its model.init_args.lora, which best.ckpt needs, makes no adapter: " in line


def test_a_merged_weight_outside_its_types_range_is_refused(run, tmp_path, capsys):
    path = run / "adapter" / "adapter_model.safetensors"
    save_file({name: 300 * one for name, one in load_file(path).items()}, path)
    line = refusal(capsys, run, tmp_path / "out", "--merged", "--dtype", "float16")
    assert "leaves the range of torch.float16: give --dtype bfloat16 or float32" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [["--base-name", "me/tiny"], ["--merged"]])
def test_without_the_hub_nothing_is_pushed_the_files_stay_and_all_else_was_said_before(flags, run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(run), str(tmp_path / "out"), "--push", "owner/name", *flags])
    said = capsys.readouterr()
    assert "not pushed to owner/name (" in said.err
    assert said.err.splitlines()[-1].endswith(f"the files are in {tmp_path / 'out'}")
    assert "The card has no evaluations" in said.out and said.out.endswith("the code that loads it\n")
    assert (tmp_path / "out" / "export.json").exists()
