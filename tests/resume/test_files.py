"""A checkpoint is whole or absent, is never run, and the newest whole one is found by its steps."""

import os
import resource
from pathlib import Path

import pytest
import torch

from synthalign.training.checkpoints import CheckpointFiles, check, read
from synthalign.training.newest import newest, resolve

FILES = CheckpointFiles()


def checkpoint(step: int, epochs: int = 0, **more) -> dict:
    """What Lightning's has, as far as it is looked at."""
    progress = {"fit_loop": {"epoch_progress": {"current": {"processed": epochs}}}}
    weights = {"w": torch.full((1000,), float(step))}
    return {
        "state_dict": weights,
        "global_step": step,
        "epoch": epochs,
        "pytorch-lightning_version": "2.6.0",
        "loops": progress,
        "optimizer_states": [],
        "lr_schedulers": [],
    } | more


def save(path: Path, step: int, epochs: int = 0, **more) -> Path:
    FILES.save_checkpoint(checkpoint(step, epochs, **more), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "fit" / "checkpoints"


class Wish:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def flip(path: Path) -> Path:
    """Change one bit of the weights."""
    content = bytearray(path.read_bytes())
    place = content.index(torch.full((10,), 7.0).numpy().tobytes())
    content[place + 400] ^= 1
    path.write_bytes(content)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-300])
    return path


def evil(path: Path) -> Path:
    torch.save(checkpoint(7, callbacks=Wish(path.parent / "ran")), path)
    return path


def test_what_is_saved_comes_back_and_nothing_else_is_left(folder):
    path = save(folder / "a.ckpt", 3)
    assert torch.equal(FILES.load_checkpoint(path, weights_only=False)["state_dict"]["w"], torch.full((1000,), 3.0))
    save(path, 4)
    assert read(path)["global_step"] == 4
    assert [file.name for file in folder.iterdir()] == ["a.ckpt"]


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(folder):
    path = save(folder / "a.ckpt", 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(RuntimeError, match=r"^checkpoint .*a\.ckpt cannot be written \(") as caught:
            save(path, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert read(path)["global_step"] == 3 and [file.name for file in folder.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (flip, "cannot be read"),
        (cut, "cannot be read"),
        (evil, "is a pickle that wants to run posix.mkdir: refused, and nothing was run"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_text("no checkpoint"), "cannot be read"),
        (lambda path: torch.save([1], path), "is no checkpoint of a run"),
        (lambda path: torch.save({"w": torch.ones(2)}, path), "is no checkpoint of a run"),
    ],
    ids=["flipped bit", "cut short", "malicious", "empty", "text", "list", "weights"],
)
def test_what_is_no_whole_checkpoint_is_one_line_and_not_run(spoil, said, folder, tmp_path):
    path = save(folder / "a.ckpt", 7)
    spoil(path)
    for reader in (
        lambda: FILES.load_checkpoint(path, weights_only=False),
        lambda: check(path, training=True),
        lambda: resolve(str(path), tmp_path, training=True),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            reader()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "ran").exists()


def test_the_malicious_checkpoint_was_no_bluff(folder):
    folder.mkdir(parents=True)
    torch.load(evil(folder / "a.ckpt"), weights_only=False)
    assert (folder / "ran").is_dir()


@pytest.mark.parametrize("means", ["file", "checkpoints", "run", "last"])
def test_a_path_means_the_newest_checkpoint_by_steps_not_by_time(means, folder, tmp_path):
    for step in (9, 10, 2):  # the last written is not the newest, nor is the last by name
        path = save(folder / f"step={step}.ckpt", step)
    os.utime(path, (2e9, 2e9))
    given = {"file": folder / "step=10.ckpt", "checkpoints": folder, "run": folder.parent, "last": "last"}[means]
    assert resolve(str(given), tmp_path / "runs", training=True) == folder / "step=10.ckpt"


def test_the_end_of_an_epoch_comes_after_its_last_step(folder):
    save(folder / "a.ckpt", 4, epochs=1)
    save(folder / "b.ckpt", 4, epochs=0)
    assert newest(folder, training=True) == folder / "a.ckpt"


def test_half_written_and_damaged_ones_are_passed_over_and_named(folder, capsys):
    good = save(folder / "step=5.ckpt", 5)
    (folder / ".step=6.ckpt.part").write_bytes(good.read_bytes())
    for step, spoil in ((7, flip), (8, cut), (9, evil)):
        spoil(save(folder / f"step={step}.ckpt", 7))
    (folder / "notes.txt").write_text("not one")
    save(folder / "weights.ckpt", 10, optimizer_states=None).write_bytes(b"x")
    assert newest(folder, training=True) == good
    said = capsys.readouterr().err.splitlines()
    assert all(line.startswith("synthalign: passed over: checkpoint ") for line in said)
    assert sorted(word for line in said for word in line.split() if word.endswith(".ckpt")) == [
        str(folder / f"{name}.ckpt") for name in ("step=7", "step=8", "step=9", "weights")
    ]


def test_weights_alone_are_enough_to_evaluate_and_not_to_train(folder):
    weights = {
        key: checkpoint(3)[key] for key in ("state_dict", "global_step", "epoch", "pytorch-lightning_version", "loops")
    }
    FILES.save_checkpoint(weights, folder / "a.ckpt")
    check(folder / "a.ckpt", training=False)
    with pytest.raises(ValueError, match=r"holds weights only: it has no optimizer_states"):
        check(folder / "a.ckpt", training=True)
    save(folder / "b.ckpt", 2)
    assert newest(folder, training=True) == folder / "b.ckpt"
    assert newest(folder, training=False) == folder / "a.ckpt"


def test_last_is_of_the_newest_fit_that_has_any(tmp_path, capsys):
    assert resolve("last", tmp_path, training=True) is None
    assert "starts from the beginning" in capsys.readouterr().err
    for name, step in (("fit", 30), ("fit-2", 20), ("fit-10", 10), ("fitted", 99)):
        save(tmp_path / name / "checkpoints" / "a.ckpt", step)
    (tmp_path / "fit-11" / "checkpoints").mkdir(parents=True)  # had none to save yet
    assert resolve("last", tmp_path, training=True) == tmp_path / "fit-10" / "checkpoints" / "a.ckpt"


@pytest.mark.parametrize("given", ["nowhere", "nowhere.ckpt", "best", "hpc", "empty"])
def test_a_path_to_nothing_is_one_line(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=rf"^--ckpt_path: no (whole )?checkpoint (at|in) {given}"):
        resolve(given, tmp_path, training=True)


def test_a_folder_of_shards_is_refused_unless_its_pickle_is_trusted(folder):
    shards = folder / "step=3.ckpt"
    shards.mkdir(parents=True)
    (shards / ".metadata").write_bytes(b"a pickle")
    torch.save({key: value for key, value in checkpoint(3).items() if key != "state_dict"}, shards / "meta.pt")
    with pytest.raises(ValueError, match=r"whose \.metadata is a pickle: .*--trust_shards true$"):
        resolve(str(shards), folder, training=True)
    assert resolve(str(shards), folder, training=True, trust_shards=True) == shards
    save(folder / "step=2.ckpt", 2)
    assert newest(folder, training=True) == folder / "step=2.ckpt"
    assert newest(folder, training=True, trust_shards=True) == shards
