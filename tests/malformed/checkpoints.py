"""Checkpoints of other versions and runs, with parts missing or strange, or damaged as archives."""

import io
import zipfile
from pathlib import Path

import torch
from malformed.configs import BOUNDS
from malformed.torn import Draw, one_of, tear
from malformed.trees import inside, places, spoil


def malform(folder: Path, draw: Draw) -> tuple[list[str], str]:
    """Spoil the checkpoint; return the command that goes on from it, and what was done."""
    path = folder / "last.ckpt"
    way = one_of(draw, ["a value", "a value", "a value", "a random state", "a tensor", "an archive", "torn"])
    if way == "a random state":
        saved = torch.load(path, weights_only=True)
        saved["random_states"], way = spoil(saved["random_states"], draw)
        torch.save(saved, path)
        way = f"random_states {way}"
    elif way == "a value":
        spoilt, way = spoil(torch.load(path, weights_only=True), draw)
        torch.save(spoilt, path, _use_new_zipfile_serialization=one_of(draw, [True, True, False]))
    elif way == "a tensor":
        way = _tensor(path, draw)
    elif way == "an archive":
        way = _archive(path, draw)
    else:
        way = tear(path, draw, [folder / "config.yaml", folder / "adapter" / "adapter_model.safetensors"])
    command = one_of(draw, ["fit", "fit", "validate", "test"])
    bounds = [*BOUNDS, "--trainer.max_steps", "3", "--trainer.max_epochs", "2"]
    return [command, "--config", "config.yaml", "--ckpt_path", "last.ckpt", *bounds], f"{command}, {way}"


def _tensor(path: Path, draw: Draw) -> str:
    saved = torch.load(path, weights_only=True)
    there = [at for at in places(saved) if isinstance(inside(saved, at), torch.Tensor)]
    at = one_of(draw, there)
    around, tensor = inside(saved, at[:-1]), inside(saved, at)
    way = one_of(draw, ["NaN", "shape", "type", "meta", "sparse"])
    around[at[-1]] = {
        "NaN": torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor + 1,
        "shape": torch.cat([tensor.flatten(), tensor.flatten()]),
        "type": tensor.to(torch.complex64),
        "meta": torch.empty_like(tensor, device="meta"),
        "sparse": tensor.to_sparse(),
    }[way]
    torch.save(saved, path)
    return f"{way}: {'.'.join(map(str, at))}"


def _archive(path: Path, draw: Draw) -> str:
    """Leave a file of the archive out, empty it, or spoil its first bytes; the archive itself is sound."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name, way = one_of(draw, sorted(files)), one_of(draw, ["left out", "emptied", "spoilt", "twice"])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for other, content in files.items():
            if other != name or way == "twice":
                archive.writestr(other if way != "twice" else f"x/{other}", content)
            elif way != "left out":
                archive.writestr(other, b"" if way == "emptied" else b"\xff\xfe" + content[2:])
    path.write_bytes(stream.getvalue())
    return f"{name} {way}"
