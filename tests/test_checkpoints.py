"""A pickle is read once, by a reader that runs nothing, and is safetensors from then on."""

import os
import pickle
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from synthalign.checkpoints import _unpickled, assemble, find_file, read_file, read_named
from synthalign.store import fingerprint

MATRIX = torch.arange(12.0).reshape(3, 4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "synthalign" / "checkpoints"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


class Wish:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def the_line(folder: Path, name: str) -> str:
    with pytest.raises(ValueError) as caught:
        read_file(str(folder), name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin", "weights.ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_tensors_come_out_as_they_went_in(name, zipped, wrapped, folder):
    # A slice and a transpose share memory with the rest, and half precision stays half.
    tensors = {"a": MATRIX, "b": MATRIX[1:], "c": MATRIX.T, "half": MATRIX.half(), "n": torch.tensor(3)}
    saved = {"epoch": 3, "state_dict": tensors} if wrapped else tensors
    torch.save(saved, folder / name, _use_new_zipfile_serialization=zipped)
    assert same(read_file(str(folder), name), tensors)
    assert same(read_file(str(folder), name), tensors)


def test_a_pickle_is_converted_once_and_the_terminal_told(folder, capsys):
    torch.save({"a": MATRIX}, folder / "weights.pt")
    read_file(str(folder), "weights.pt")
    (made,) = folder.glob(".weights-*.safetensors")
    assert capsys.readouterr().err == (
        f"synthalign: {folder / 'weights.pt'} is a pickle: from now on {made} is read in its place\n"
    )
    stamp = made.stat().st_mtime_ns
    read_file(str(folder), "weights.pt")
    assert capsys.readouterr().err == "" and made.stat().st_mtime_ns == stamp
    assert sorted(path.name for path in folder.iterdir()) == [made.name, "weights.pt"]


def test_a_converted_pickle_is_not_unpickled_again(folder, monkeypatch):
    torch.save({"a": MATRIX}, folder / "weights.pt")
    read_file(str(folder), "weights.pt")
    monkeypatch.setattr(torch, "load", None)
    assert same(read_file(str(folder), "weights.pt"), {"a": MATRIX})


def test_another_pickle_of_the_name_is_converted_anew_though_its_date_is_old(folder):
    torch.save({"a": MATRIX}, folder / "weights.pt")
    stamp = (folder / "weights.pt").stat()
    read_file(str(folder), "weights.pt")
    torch.save({"a": MATRIX + 1}, folder / "weights.pt")
    os.utime(folder / "weights.pt", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (folder / "weights.pt").stat().st_size == stamp.st_size
    assert same(read_file(str(folder), "weights.pt"), {"a": MATRIX + 1})


def test_a_folder_counts_as_unchanged_when_its_pickle_was_converted(folder):
    """Its fingerprint addresses what was made with the model: a rerun must find it."""
    torch.save({"a": MATRIX}, folder / "weights.pt")
    before = fingerprint(folder)
    read_file(str(folder), "weights.pt")
    assert fingerprint(folder) == before


def test_what_was_half_written_does_not_count(folder):
    torch.save({"a": MATRIX}, folder / "weights.pt")
    read_file(str(folder), "weights.pt")
    (made,) = folder.glob(".weights-*.safetensors")
    whole = made.read_bytes()
    made.unlink()
    (folder / f".{made.name}.0123.part").write_bytes(whole[:50])
    assert same(read_file(str(folder), "weights.pt"), {"a": MATRIX})
    assert made.read_bytes() == whole


def test_a_folder_that_cannot_be_written_to_leaves_it_to_the_cache(folder, cache, monkeypatch, capsys):
    torch.save({"a": MATRIX}, folder / "weights.pt")
    read_only(folder, monkeypatch)
    for _ in range(2):
        assert same(read_file(str(folder), "weights.pt"), {"a": MATRIX})
    (made,) = cache.iterdir()
    assert capsys.readouterr().err.count(f"from now on {made} is read") == 1
    assert [path.name for path in folder.iterdir()] == ["weights.pt"]
    # A copy elsewhere is the same content.
    elsewhere = shutil.copytree(folder, folder.parent / "elsewhere")
    assert same(read_file(str(elsewhere), "weights.pt"), {"a": MATRIX})
    assert [path.name for path in elsewhere.iterdir()] == ["weights.pt"]


def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make opening new files in a folder fail, for the superuser as well, as a read-only disk does."""
    import errno

    from safetensors import SafetensorError
    from safetensors import torch as safetensors_torch

    touch, write = Path.touch, safetensors_torch.save_file

    def refusing(path: Path) -> None:
        if path.is_relative_to(folder):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        touch(path)

    def nameless(tensors: dict[str, Tensor], path: Path) -> None:
        if path.is_relative_to(folder):
            raise SafetensorError("Error while serializing: I/O error: Read-only file system (os error 30)")
        write(tensors, path)

    monkeypatch.setattr(Path, "touch", refusing)
    monkeypatch.setattr(safetensors_torch, "save_file", nameless)


def test_a_full_disk_is_one_line_and_nothing_is_left(folder):
    torch.save({"a": torch.ones(100_000)}, folder / "weights.pt")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(RuntimeError, match=r"^the safetensors made of .* cannot be written to .*: ") as caught:
            read_file(str(folder), "weights.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "too large" in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_nothing(zipped, folder, tmp_path, capsys):
    ran = tmp_path / "ran"
    torch.save({"a": MATRIX, "b": Wish(ran)}, folder / "evil.pt", _use_new_zipfile_serialization=zipped)
    line = the_line(folder, "evil.pt")
    assert line.startswith(
        f"{folder / 'evil.pt'} is a pickle that wants to run posix.mkdir: refused, and nothing was run"
    )
    assert not ran.exists()
    assert [path.name for path in folder.iterdir()] == ["evil.pt"] and capsys.readouterr().err == ""
    torch.load(folder / "evil.pt", weights_only=False)  # it was no bluff
    assert ran.is_dir()


def test_a_bare_pickle_that_wants_to_run_code_is_refused_and_runs_nothing(folder, tmp_path):
    ran = tmp_path / "ran"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (folder / "evil.bin").write_bytes(pickle.dumps({"a": Wish(ran)}, protocol=protocol))
        assert "evil.bin" in the_line(folder, "evil.bin")
        assert not ran.exists()
    pickle.loads((folder / "evil.bin").read_bytes())
    assert ran.is_dir()


def test_a_whole_module_is_not_a_checkpoint(folder):
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    assert "is a pickle that wants to run torch.nn.modules.linear.Linear" in the_line(folder, "module.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as a checkpoint of torch"),
        (b"not a checkpoint", "cannot be read as a checkpoint of torch"),
        (None, "cannot be read as a checkpoint of torch"),
        ([MATRIX], "holds no dictionary of tensors"),
        ({}, "holds no dictionary of tensors"),
        ({"a": MATRIX, "lr": 0.1}, "holds no dictionary of tensors: 'lr' is a float"),
        ({"state_dict": {"a": MATRIX, "name": "x"}}, "holds no dictionary of tensors: 'name' is a str"),
        ({3: MATRIX}, "holds 3, which safetensors cannot: "),
        ({"a": MATRIX, "b": MATRIX.to_sparse()}, "holds 'b', which safetensors cannot: "),
        ({"c": MATRIX.to(torch.complex128)}, "holds 'c', which safetensors cannot: "),
        ({"d": MATRIX.to("meta")}, "holds 'd', which safetensors cannot: "),
    ],
)
def test_what_is_no_checkpoint_is_one_line(content, said, folder):
    path = folder / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        torch.save({"a": MATRIX}, path)
        path.write_bytes(path.read_bytes()[:-100])
    else:
        torch.save(content, path)
    assert the_line(folder, "weights.pt").startswith(f"{path} {said}")


def test_a_flipped_bit_in_the_numbers_is_refused(folder):
    torch.save({"a": torch.ones(1000)}, folder / "weights.pt")
    content = bytearray((folder / "weights.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "weights.pt").write_bytes(content)
    assert "it is damaged (in weights/data/0)" in the_line(folder, "weights.pt")
    assert [path.name for path in folder.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_anywhere_is_one_line_or_none(zipped, folder):
    torch.save({"a": MATRIX, "b": MATRIX.half()}, folder / "good.pt", _use_new_zipfile_serialization=zipped)
    good, draw, refused = (folder / "good.pt").read_bytes(), Random(0), 0
    for number in range(300):
        damaged = bytearray(good)
        for _ in range(draw.choice([1, 3, 20])):
            damaged[draw.randrange(len(good))] = draw.randrange(256)
        (folder / "bad.pt").write_bytes(damaged[: draw.randrange(len(good))] if number % 3 == 0 else damaged)
        try:
            _unpickled(folder / "bad.pt")
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 150


def test_safetensors_are_read_as_they_are(folder, capsys):
    from safetensors.torch import save_file

    save_file({"a": MATRIX}, folder / "weights.safetensors")
    assert same(read_file(str(folder), "weights.safetensors"), {"a": MATRIX})
    assert capsys.readouterr().err == "" and len(list(folder.iterdir())) == 1
    (folder / "weights.safetensors").write_bytes(b"torn")
    assert "cannot be read: " in the_line(folder, "weights.safetensors")


def test_a_file_that_is_not_there_is_one_line(folder):
    assert the_line(folder, "gone.pt") == f"model {str(folder)!r} has no file 'gone.pt'"
    with pytest.raises(ValueError, match=r"^file 'HPS\.pt' of model 'nobody/nothing' cannot be had: ") as caught:
        find_file("nobody/nothing", "HPS.pt")
    assert "\n" not in str(caught.value)


def test_those_who_convert_at_once_all_read_the_same(folder):
    """As the ranks of a run do."""
    torch.save({"a": MATRIX}, folder / "weights.pt")
    with ThreadPoolExecutor(4) as ranks:
        read = list(ranks.map(lambda _: read_file(str(folder), "weights.pt"), range(4)))
    assert all(same(tensors, {"a": MATRIX}) for tensors in read)
    assert len(list(folder.iterdir())) == 2


def test_single_weights_of_a_model_in_several_files_are_found(folder):
    import json

    from safetensors.torch import save_file

    save_file({"a": MATRIX}, folder / "one.safetensors")
    save_file({"b": MATRIX + 1, "c": MATRIX}, folder / "two.safetensors")
    place = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    assert same(read_named(str(folder), ["b", "a"]), {"a": MATRIX, "b": MATRIX + 1})
    with pytest.raises(ValueError, match=r"lacks weight 'd': its model\.safetensors\.index\.json does not list it$"):
        read_named(str(folder), ["d"])


@pytest.mark.parametrize("content", ["{bad", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_list_of_a_models_weights_is_one_line(content, folder):
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json cannot be read as the list of a model's weights: ") as caught:
        read_named(str(folder), ["a"])
    assert "\n" not in str(caught.value)


def test_a_network_is_assembled_whole_or_not_at_all():
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    weights = {name: tensor + 1 for name, tensor in CLIPTextModel(config).state_dict().items()}

    def made(tensors: dict[str, Tensor], dtype: torch.dtype | str = "auto") -> torch.nn.Module:
        return assemble(CLIPTextModel, config, tensors, source="x.pt", dtype=dtype)

    network = made({**weights, "more": MATRIX})
    assert same(dict(network.state_dict()), weights) and not network.training
    half = {name: tensor.half() for name, tensor in weights.items()}
    for dtype, expected in (("auto", torch.float16), (torch.float32, torch.float32)):
        assert {tensor.dtype for tensor in made(half, dtype).parameters()} == {expected}
    name = next(iter(weights))
    with pytest.raises(ValueError, match=rf"^x\.pt lacks weights of CLIPTextModel: {name}$"):
        made({key: value for key, value in weights.items() if key != name})
    with pytest.raises(ValueError, match=r"^x\.pt holds no weights of this CLIPTextModel: "):
        made({**weights, name: MATRIX})
