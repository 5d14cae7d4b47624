"""Settings that no part of ours reads, or reads too late: refused in one line that says which and why."""

from pathlib import Path

import pytest
from malformed.judged import LINE, judge
from malformed.world import CONFIG

from synthalign.cli import LONGEST_LINE, fail


@pytest.fixture
def folder(tmp_path: Path, tiny_llava: Path) -> Path:
    (tmp_path / "config.yaml").write_text(CONFIG.replace("POLICY", str(tiny_llava)), encoding="utf-8")
    return tmp_path


def line(folder: Path, *flags: str) -> str:
    outcome = judge(folder, ["fit", "--config", "config.yaml", *flags])
    assert outcome.ending == LINE, outcome.said
    return outcome.said


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed_everything", "-1", "seed_everything: -1 is not in bounds"),
        ("trainer.accelerator", "cpucpu", "invalid accelerator name"),
        ("trainer.accumulate_grad_batches", "0", "trainer.accumulate_grad_batches must be >= 1, got 0"),
        ("trainer.check_val_every_n_epoch", "0", "trainer.check_val_every_n_epoch must be >= 1, got 0"),
        ("trainer.devices", "-7", "`devices` selected with `CPUAccelerator` should be an int > 0"),
        ("trainer.num_nodes", "0", "`num_nodes` must be a positive integer"),
        (
            "trainer.default_root_dir",
            "config.yaml",
            "trainer.default_root_dir cannot be a folder: config.yaml is a file",
        ),
        ("trainer.default_root_dir", "x" * 300, "trainer.default_root_dir cannot be a folder: File name too long"),
        ("trainer.default_root_dir", "a\0b", r"trainer.default_root_dir cannot be a folder: 'a\x00b'"),
    ],
)
def test_a_setting_of_the_trainer_that_cannot_be_meant(key: str, value: str, said: str, folder: Path):
    assert said in line(folder, f"--{key}={value}")


@pytest.mark.parametrize("trainer", ["3", "[]", "null"])
def test_a_trainer_without_keys(trainer: str, folder: Path):
    (folder / "over.yaml").write_text(f"trainer: {trainer}\n")
    assert "trainer: expected keys and their values" in line(folder, "--config", "over.yaml")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.init_args.quantization=nf4", "--trainer.strategy=model_parallel"], "take trainer.strategy ddp"),
        (["--model.init_args.lora=null"], "without adapters the policy does not stay its own reference"),
        (["--model.init_args.checkpoint_base=true", "--trainer.strategy=model_parallel"], "checkpoint_base gathers no"),
    ],
)
def test_what_cannot_be_combined_is_refused_before_there_are_pairs(flags: list[str], said: str, folder: Path):
    assert not list(folder.glob("*pairs*"))
    assert said in line(folder, *flags)


@pytest.mark.parametrize("command", ["fit", "plan"])
def test_a_config_that_holds_itself(command: str, folder: Path):
    (folder / "over.yaml").write_text("trainer: &t [*t]\n")
    outcome = judge(folder, [command, "--config", "config.yaml", "--config", "over.yaml"])
    assert outcome.ending == LINE and "a config file holds itself" in outcome.said


@pytest.mark.parametrize("content", ["trainer: {}\n".encode("utf-16"), b"\x80\x02}q\x00.", "é: 1\n".encode("latin-1")])
def test_a_config_that_is_no_text_is_named(content: bytes, folder: Path):
    (folder / "over.yaml").write_bytes(content)
    assert line(folder, "--config", "over.yaml").startswith("over.yaml: not UTF-8 text at byte 0")


def test_of_a_long_message_the_middle_is_left_out(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        fail(f"begin {'x' * 9999} end")
    said = capsys.readouterr().err.removeprefix("synthalign: error: ").strip()
    assert len(said) == LONGEST_LINE
    assert said.startswith("begin xxx") and " … xxx" in said and said.endswith("xxx end")
