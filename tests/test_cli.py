"""The door: what a person sees who mistypes, asks for help, or lays one file over another."""

import json
import subprocess
import sys
from pathlib import Path

import drawings
import pytest
import yaml

from synthalign import commands
from synthalign.cli import main
from synthalign.modules.dpo import DPOModule

CONFIG = """\
trainer:
  default_root_dir: runs/${model.init_args.loss.init_args.beta}
  accelerator: cpu
  max_epochs: 1
  enable_progress_bar: false
model:
  class_path: DPOModule
  init_args:
    policy: LLAVA_FOLDER
    lora: {r: 2, alpha: 4}
    loss:
      class_path: synthalign.dpo.losses.DPO
      init_args: {beta: 0.1}
data:
  class_path: SyntheticPreferenceDataModule
  init_args:
    batch_size: 2
    pairs: pairs.json
    images: images
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llava: Path) -> str:
    monkeypatch.chdir(tmp_path)
    drawings.write_benchmarks(tmp_path / "bench")
    (tmp_path / "bench" / "images").rename(tmp_path / "images")
    drawings.write_pairs(tmp_path / "pairs.json", tmp_path / "images")
    text = CONFIG.replace("LLAVA_FOLDER", str(tiny_llava))
    Path("config.yaml").write_text(text)
    return text


def mistake(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that must fail, and return its one line."""
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "usage:" not in said.err + said.out and "Traceback" not in said.err
    lines = [line for line in said.err.splitlines() if line.startswith("synthalign: error:")]
    assert len(lines) == 1
    assert len(lines[0]) < 400
    return lines[0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    policy:", "    polcy: x\n    policy:", ["line 9", "polcy"]),
        ("  max_epochs: 1", "  max_epoch: 1", ["line 4", "max_epoch"]),
        ("beta: 0.1", "bet: 0.1", ["line 13", "bet"]),
        ("beta: 0.1", "beta: high", ["beta", "float", "high"]),
        ("batch_size: 2", "batch_size: two", ["line 17", "batch_size", "int", "two"]),
        ("losses.DPO", "losses.DPP", ["synthalign.dpo.losses", "DPP"]),
        ("DPOModule", "DPOModul", ["model", "DPOModul"]),
        ("init_args.beta}", "init_args.bet}", ["line 2", "bet"]),
        ("{beta: 0.1}", "{beta: 0.1", ["parsing", "line 13"]),
        ("beta: 0.1", "beta: -1", ["beta must be > 0, got -1"]),
        ("batch_size: 2", "val_share: 2", ["val_share", "got 2"]),
        ("pairs: pairs.json", "pairs: nowhere.json", ["nowhere.json"]),
        ("images: images", "images: nowhere", ["nowhere", "red.png"]),
    ],
)
def test_a_mistake_in_a_config_is_one_line(
    old: str, new: str, said: list[str], config: str, capsys: pytest.CaptureFixture[str]
):
    assert old in config
    Path("config.yaml").write_text(config.replace(old, new))
    line = mistake(capsys, "fit", "--config", "config.yaml")
    assert all(part in line for part in said), line


def test_an_absent_model_folder_is_one_line(config: str, capsys: pytest.CaptureFixture[str]):
    line = mistake(capsys, "fit", "--config", "config.yaml", "--model.init_args.policy", "models/nothing/here")
    assert "models/nothing/here" in line


def test_an_absent_adapter_is_one_line(config: str, capsys: pytest.CaptureFixture[str]):
    line = mistake(capsys, "test", "--config", "config.yaml", "--model.init_args.adapter", "./runs/none")
    assert "./runs/none" in line


def test_malformed_json_is_one_line_with_its_number(config: str, capsys: pytest.CaptureFixture[str]):
    text = Path("pairs.json").read_text().splitlines()
    text[6] = text[6].replace('"', "", 1)
    Path("pairs.json").write_text("\n".join(text))
    line = mistake(capsys, "fit", "--config", "config.yaml")
    assert "pairs.json, line 7" in line


def test_an_image_outside_its_folder_is_one_line(config: str, capsys: pytest.CaptureFixture[str]):
    rows = json.loads(Path("pairs.json").read_text())
    rows[3]["image"] = "../config.yaml"
    Path("pairs.json").write_text(json.dumps(rows))
    assert "../config.yaml" in mistake(capsys, "fit", "--config", "config.yaml")


def test_an_unreadable_image_is_one_line(config: str, capsys: pytest.CaptureFixture[str]):
    Path("images/green.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    assert "green.png" in mistake(capsys, "fit", "--config", "config.yaml")


def test_an_absent_config_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert "nowhere.yaml" in mistake(capsys, "fit", "--config", "nowhere.yaml")


def test_an_unknown_key_of_the_evaluations_names_the_help_that_lists_them(capsys: pytest.CaptureFixture[str]):
    line = mistake(capsys, "fit", "--trainer.callbacks+=Evaluate", "--trainer.callbacks.every_n_stps=3")
    assert "every_n_stps" in line and "--trainer.callbacks.help Evaluate" in line


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert "'trian'" in mistake(capsys, "trian")


def test_an_unknown_flag_is_one_line(config: str, capsys: pytest.CaptureFixture[str]):
    assert "--modle" in mistake(capsys, "fit", "--config", "config.yaml", "--modle.policy", "x")


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    with pytest.raises(SystemExit) as stopped:
        main([*args, "--print_config"])
    assert stopped.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_references_are_resolved_after_overlays_and_flags(config: str, capsys: pytest.CaptureFixture[str]):
    Path("overlay.yaml").write_text("model: {init_args: {loss: {init_args: {beta: 0.7}}}}\n")
    main(["fit", "--config", "config.yaml", "--config", "overlay.yaml"])
    main(["fit", "--config", "config.yaml", "--config", "overlay.yaml", "--model.init_args.loss.init_args.beta", "0.3"])
    assert sorted(path.name for path in Path("runs").iterdir()) == ["0.3", "0.7"]
    used = yaml.safe_load(Path("runs/0.3/fit/config.yaml").read_text())
    assert used["model"]["init_args"]["loss"]["init_args"]["beta"] == 0.3


def test_a_second_fit_leaves_the_first_ones_results_alone(config: str):
    main(["fit", "--config", "config.yaml"])
    first = Path("runs/0.1/fit/metrics.csv").read_bytes()
    main(["fit", "--config", "config.yaml", "--seed_everything", "5"])
    assert Path("runs/0.1/fit/metrics.csv").read_bytes() == first
    assert Path("runs/0.1/fit-2/metrics.csv").is_file()


def test_the_printed_config_holds_every_key_and_runs(config: str, capsys: pytest.CaptureFixture[str]):
    whole = printed(capsys, "fit", "--config", "config.yaml", "--trainer.max_epochs", "3")
    assert whole["trainer"]["max_epochs"] == 3
    assert whole["model"]["init_args"]["loss"]["init_args"]["label_smoothing"] == 0.0
    assert whole["data"]["init_args"]["seed"] == 0
    Path("whole.yaml").write_text(yaml.safe_dump(whole))
    main(["fit", "--config", "whole.yaml"])


@pytest.mark.parametrize(
    ("args", "documented"),
    [
        (["--model.help", "DPOModule"], ["--model.policy", "--model.lora.help", "--model.layout", "--model.schedule"]),
        (["--data.help", "SyntheticPreferenceDataModule"], ["--data.synthesis", "--data.val_share", "--data.pairs"]),
        (["--trainer.callbacks.help", "Evaluate"], [".every_n_steps", "synthalign.evals.pope.POPE"]),
        (
            ["--trainer.callbacks", "Evaluate", "--trainer.callbacks.evals.help", "synthalign.evals.pope.POPE"],
            [".num_images", ".suffix"],
        ),
        (["--help"], ["--trainer.max_epochs", "--config", "--model.help", "--data.help", "model.chat -->"]),
    ],
)
def test_help_documents_the_keys(args: list[str], documented: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *args])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(key in said for key in documented)


def test_the_first_screen_opens_no_heavy_room():
    heavy = "sorted({'torch', 'lightning', 'transformers'} & set(sys.modules))"
    code = f"import sys, synthalign.cli; synthalign.cli.main([]); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: synthalign COMMAND" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_a_fault_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def crash(args: list[str]) -> None:
        list(zip([1], [], strict=True))

    monkeypatch.setattr("synthalign.cli._train", crash)
    with pytest.raises(ValueError, match="zip"):
        main(["fit"])


def test_a_mistake_can_be_shown_with_its_traceback(config: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SYNTHALIGN_DEBUG", "1")
    with pytest.raises(ValueError, match=r"nowhere\.json"):
        main(["fit", "--config", "config.yaml", "--data.init_args.pairs", "nowhere.json"])


def test_world_writes_its_files_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["world", str(tmp_path / "world"), "--num-prompts", "3", "--num-scenes", "2"])
    assert len((tmp_path / "world" / "prompts.jsonl").read_text().splitlines()) == 3
    assert str(tmp_path / "world") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.init_args.loss.init_args.beta", "big"], ["--model.init_args.loss.init_args.beta: ", "float", "big"]),
        (["--ckpt_path", "nope.ckpt"], ["--ckpt_path: no checkpoint at nope.ckpt"]),
        (["--trainer.accelerator", "mps"], ["MPSAccelerator"]),
    ],
)
def test_a_mistake_in_a_flag_is_one_line_that_blames_no_file(flags, said, config, capsys):
    line = mistake(capsys, "fit", "--config", "config.yaml", *flags)
    assert all(part in line for part in said) and "config.yaml" not in line


def test_a_command_that_is_interrupted_says_that_it_can_go_on(monkeypatch, capsys):
    def interrupted(args: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "world", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["world", "out"])
    assert stopped.value.code == 130
    assert "stopped; what had landed on disk stays, and the same command goes on from there" in capsys.readouterr().err


def test_a_fit_that_is_interrupted_says_how_training_goes_on(config, monkeypatch, capsys):
    def interrupted(module: DPOModule, batch: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DPOModule, "training_step", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "config.yaml"])
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    assert "training itself with --ckpt_path FILE" in said and "Traceback" not in said
