"""The card claims what is on file: whose figures, which base, which data; and the adapter names its base so, too."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exported_runs import config, write_config, write_run
from peft import AutoPeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from synthalign.cli import main
from synthalign.export import write

COMMIT = "0123456789abcdef0123456789abcdef01234567"

LEGEND = {
    "accuracy": {"better": "high", "percent": True, "headline": True},
    "score": {"better": None, "percent": False, "headline": True},
    "score_low": {"better": None, "percent": False, "headline": True},
    "score_high": {"better": None, "percent": False, "headline": True},
    "detail": {"better": None, "percent": False, "headline": False},
    "n": {"better": None, "percent": False, "headline": False},
}


def metrics(accuracy: float) -> dict[str, float]:
    rest = {"score": 2.0, "score_low": 1.5, "score_high": 2.5, "detail": 9.0, "n": 50.0}
    return {f"pope/{key}": value for key, value in {"accuracy": accuracy, **rest}.items()}


def write_results(folder: Path, **others: Any) -> Path:
    history = [
        {"epoch": epoch, "step": step, "samples": f"samples/epoch-00{epoch}", "metrics": metrics(accuracy)}
        for epoch, step, accuracy in ((0, 0, 0.5), (1, 7, 0.625), (2, 14, 0.75))
    ]
    evals = {"pope": {"class_path": "x.POPE", "about": {"parser": "official"}, "legend": LEGEND}}
    found = {"stage": "fit", "before": metrics(0.5), "after": metrics(0.75), "history": history, "evals": evals}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found | {"policy": "x", "adapter": None, "seed": 3} | others))
    return folder


@pytest.fixture
def run(tiny_llava, tmp_path):
    write_run(tmp_path / "fit", tiny_llava, step=7)
    return write_results(tmp_path / "fit")


@pytest.fixture(scope="module")
def hub(tiny_llava):
    """The tiny LLaVA as a download left it: me/tiny, whose revision v1 is a commit."""
    folder = Path(os.environ["HF_HOME"]) / "hub" / "models--me--tiny"
    shutil.copytree(tiny_llava, folder / "snapshots" / COMMIT)
    (folder / "snapshots" / COMMIT / "LICENSE").write_text("terms")
    (folder / "refs").mkdir()
    for name in ("main", "v1"):
        (folder / "refs" / name).write_text(COMMIT)
    yield "me/tiny"
    shutil.rmtree(folder)


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def header(folder: Path) -> dict[str, Any]:
    return yaml.safe_load(card(folder).split("---\n")[1])


def cells(folder: Path, name: str) -> list[str]:
    """What stands behind a name in a table."""
    (line,) = (line for line in card(folder).splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_figures_of_the_last_epoch_stand_beside_the_models_before_training(run):
    out = write(run).path
    assert cells(out, "pope/accuracy ↑") == ["50.0 %", "75.0 %", "50"]
    assert cells(out, "pope/score") == ["2.000 [1.50, 2.50]", "2.000 [1.50, 2.50]", "50"]
    assert "pope/detail" not in card(out) and "score_low" not in card(out)
    assert "- pope: parser: official" in card(out)
    assert "before: the model as this training began" in card(out)
    assert cells(out, "Optimizer steps taken") == ["14"]


def test_a_checkpoints_figures_are_those_of_its_own_step(run, tmp_path):
    out = write(run / "checkpoints" / "best.ckpt").path
    assert cells(out, "pope/accuracy ↑") == ["50.0 %", "62.5 %", "50"]
    assert cells(out, "Optimizer steps taken") == ["7"]
    saved = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save(saved | {"global_step": 8}, run / "checkpoints" / "other.ckpt")
    written = write(run / "checkpoints" / "other.ckpt")
    said = "The run was not evaluated at step 8, which this checkpoint is of."
    assert said in card(written.path) and any(said in note for note in written.notes)
    assert "| pope/" not in card(written.path)


def test_a_run_that_did_not_end_has_no_figures(run):
    (run / "results.json").rename(run / "unfinished.json")
    assert "The run has no results.json: it evaluated nothing, or did not come to its end." in card(write(run).path)


def test_a_test_of_this_adapter_can_stand_in(run, tmp_path, tiny_llava):
    after = {"after": metrics(0.875), "history": [], "stage": "test"}
    tested = write_results(tmp_path / "test", **after, adapter=str(run / "adapter"))
    assert cells(write(run, results=tested).path, "pope/accuracy ↑") == ["50.0 %", "87.5 %", "50"]
    other = write_results(tmp_path / "fit-2", adapter=str(run / "adapter"))  # trained on from it
    with pytest.raises(ValueError, match=r"fit-2/results.json is of a fit, whose figures are of what that has trained"):
        write(run, results=other)
    other = write_results(tmp_path / "test-2", **after, adapter="runs/other/adapter")
    with pytest.raises(ValueError, match=r"results.json is of 'runs/other/adapter', not of .*adapter, which is export"):
        write(run, results=other)


def test_the_whole_configuration_and_what_was_dropped_stand_on_the_card(run, tiny_llava):
    rows = [{"id": str(n), "reason": reason, "detail": ""} for n, reason in enumerate(["empty", "too_long", "empty"])]
    (run / "dropped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "data.json").write_text(json.dumps({"pairs": 90, "held_out": 10, "fingerprint": "00ff"}))
    out = write(run).path
    text = card(out)
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == config(tiny_llava)
    assert cells(out, "Pairs left out") == ["3 (2 empty, 1 too_long)"]
    assert cells(out, "Pairs |") == ["set/pairs.json"]
    told = {"Pairs trained on": "90", "Pairs held out": "10", "Digest of the pairs trained on and held out": "00ff"}
    assert all(cells(out, f"{name} |") == [value] for name, value in told.items())
    assert cells(out, "Seed") == ["3"]


def test_the_set_as_it_is_at_export_is_told_by_its_content(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    marks = []
    for content in ("one", "two", "one"):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / "pairs.json").write_text(content)
        marks.append(cells(write(run).path, "Digest of the file at export")[0])
    assert marks[0] == marks[2] != marks[1]


def test_a_base_of_the_hub_is_named_with_its_revision(hub, tiny_llava, tmp_path):
    write_run(tmp_path / "fit", tiny_llava)
    run = write_config(tmp_path / "fit", hub, revision="v1")
    adapter, merged = write(run), write(run, merged=True)
    said = json.loads((adapter.path / "adapter_config.json").read_text())
    assert (said["base_model_name_or_path"], said["revision"]) == ("me/tiny", "v1")
    assert header(adapter.path) == {
        "base_model": "me/tiny",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "tags": ["synthalign", "dpo", "lora"],
    }
    assert header(merged.path)["base_model_relation"] == "finetune"
    assert header(merged.path)["tags"] == ["synthalign", "dpo"]
    assert not any("folder of this machine" in note for note in adapter.notes)
    assert (merged.path / "LICENSE").read_text() == "terms"
    there = AutoPeftModel.from_pretrained(adapter.path).state_dict()
    ours = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(there[name.replace(".weight", ".default.weight")], one) for name, one in ours.items())
    AutoModelForImageTextToText.from_pretrained(merged.path)


def test_a_base_in_a_folder_is_named_by_its_whole_path_or_as_it_is_called(hub, run, tiny_llava, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_llava.parent)
    write_config(run, tiny_llava.name + "/.")  # relative to where the run was started
    plain = write(run)
    name = json.loads((plain.path / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(name).is_absolute() and Path(name).samefile(tiny_llava)
    assert "base_model" not in header(plain.path) and any("--base-name" in note for note in plain.notes)
    named = write(run, base_name=f"{hub}@v1")
    said = json.loads((named.path / "adapter_config.json").read_text())
    assert (said["base_model_name_or_path"], said["revision"]) == (hub, "v1")
    assert header(named.path)["base_model"] == hub and str(tiny_llava) not in card(named.path).split("## Data")[0]
    moved = write_config(tmp_path / "moved", "/nowhere/model")
    shutil.copytree(run / "adapter", moved / "adapter")
    taken = write(moved, base=f"{hub}@{COMMIT}")
    said = json.loads((taken.path / "adapter_config.json").read_text())
    assert (said["base_model_name_or_path"], said["revision"]) == (hub, COMMIT)


def test_an_adapter_that_was_never_trained_is_told_so(run, capsys):
    path = run / "adapter" / "adapter_model.safetensors"
    save_file({name: one * ("lora_A" in name) for name, one in load_file(path).items()}, path)
    main(["export", str(run)])
    assert "its second factors are all zero, and it changes no answer" in capsys.readouterr().out


def test_the_last_line_says_where_it_is_and_how_it_is_used(run, capsys):
    main(["export", str(run), "--merged"])
    out = run / "export" / "merged"
    expected = f"Model: {out}; transformers serve {out} serves it, and its README.md has the code that loads it"
    assert capsys.readouterr().out.splitlines()[-1] == expected


def test_a_whole_model_does_not_say_where_its_base_was(run, tiny_llava):
    written = write(run, merged=True)
    assert f"`{tiny_llava.name}`, a vision-language model" in card(written.path)
    assert str(tiny_llava) not in card(written.path).split("## The run's configuration")[0]
    assert json.loads((written.path / "export.json").read_text())["base"] == tiny_llava.name
    assert not any("folder of this machine" in note for note in written.notes)


def test_code_that_loads_from_the_hub_speaks_of_no_folder(run):
    for flags in ({"base_name": "me/tiny"}, {"merged": True}):
        assert "# the path of this folder" in card(write(run, **flags).path)
        pushed = card(write(run, repo="me/aligned", **flags).path)
        assert " = 'me/aligned'\n" in pushed and "of this folder" not in pushed


def test_a_server_is_named_where_the_weights_lie_as_the_bases_do(run, tiny_llava, tmp_path):
    assert "`transformers serve` was tried on a tiny LLaVA-1.5 so exported" in card(write(run, merged=True).path)
    other = shutil.copytree(tiny_llava, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    older = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}  # as LLaMA's once were
    save_file(tensors | older, other / "model.safetensors", metadata={"format": "pt"})
    written = write(run, tmp_path / "out", merged=True, base=str(other))
    assert "transformers serve" not in written.headline + card(written.path)
    assert any("a server may not" in note for note in written.notes)


def test_how_much_a_batch_held_is_what_ruled_it(run, tiny_llava):
    assert cells(write(run).path, "Pairs in a batch of a device") == ["2"]
    settings = config(tiny_llava)
    settings["data"]["init_args"]["max_tokens"] = 900
    settings["trainer"] |= {"devices": "auto", "strategy": "auto", "num_nodes": 2}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    out = write(run).path
    assert cells(out, "Tokens in a batch of a device, at most") == ["900"] and cells(out, "Nodes") == ["2"]
    rows = card(out).split("## The run's configuration")[0]
    assert "Pairs in a batch" not in rows and "| auto |" not in rows


def test_the_rank_is_the_adapters_own(run, tiny_llava):
    write_config(run, tiny_llava, lora={"r": 99, "alpha": 1, "dropout": 0.0, "target_modules": "x"}, adapter="me/first")
    out = write(run).path
    assert cells(out, "LoRA") == ["r=4, lora_alpha=8, lora_dropout=0.0"]
    assert "Training went on from the adapter `me/first`." in card(out)
