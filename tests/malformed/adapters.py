"""Adapters of another rank, model or base, with tensors missing, strange or lied about."""

import json
import struct
from pathlib import Path

import torch
from malformed.configs import BOUNDS
from malformed.torn import Draw, integer, one_of, tear
from malformed.trees import spoil
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"


def malform(folder: Path, draw: Draw) -> tuple[list[str], str]:
    """Spoil the adapter; return the command that takes it up, and what was done."""
    adapter = folder / "adapter"
    way = one_of(draw, ["config", "config", "tensors", "tensors", "tensors", "header", "torn"])
    if way == "config":
        path = adapter / "adapter_config.json"
        spoilt, way = spoil(json.loads(path.read_bytes()), draw)
        path.write_text(json.dumps(spoilt), encoding="utf-8")
    elif way == "tensors":
        way = _tensors(adapter / WEIGHTS, draw)
    elif way == "header":
        way = _header(adapter / WEIGHTS, draw)
    else:
        path = adapter / one_of(draw, [WEIGHTS, "adapter_config.json"])
        way = f"{path.name} {tear(path, draw, [folder / 'config.yaml', folder / 'last.ckpt'])}"
    command = one_of(draw, ["test", "test", "validate", "fit"])
    argv = [command, "--config", "config.yaml", "--model.init_args.adapter", "adapter", *BOUNDS]
    return [*argv, "--data.init_args.val_share", "0.4"], f"{command}, {way}"


def _tensors(path: Path, draw: Draw) -> str:
    tensors = load_file(path)
    name = one_of(draw, sorted(tensors))
    way = one_of(
        draw, ["missing", "extra", "renamed", "NaN", "infinite", "transposed", "rank", "type", "scalar", "none"]
    )
    tensor = tensors[name]
    if way == "missing":
        del tensors[name]
    elif way == "extra":
        tensors[f"base_model.model.{one_of(draw, ['lm_head', 'nowhere'])}.lora_A.weight"] = tensor.clone()
    elif way == "renamed":
        tensors[name.replace(one_of(draw, ["layers.0", "q_proj", "base_model", "lora_"]), "other")] = tensors.pop(name)
    elif way in {"NaN", "infinite"}:
        tensor.view(-1)[integer(draw, 0, tensor.numel() - 1)] = float("nan" if way == "NaN" else "-inf")
    elif way == "transposed":
        tensors[name] = tensor.T.contiguous()
    elif way == "rank":
        tensors = {key: torch.cat([one, one], 0 if "lora_A" in key else 1) for key, one in tensors.items()}
    elif way == "type":
        kind = one_of(draw, [torch.int64, torch.bool, torch.float16, torch.float64, torch.complex64, torch.uint8])
        tensors[name] = tensor.to(kind)
        way = str(kind)
    elif way == "scalar":
        tensors[name] = tensor.flatten()[0].clone()
    else:
        tensors = {}
    save_file(tensors, path)
    return f"{way}: {name}"


def _header(path: Path, draw: Draw) -> str:
    """Let the file's own table of contents lie."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if one_of(draw, [True, False]):
        lie = one_of(draw, [0, 1, length - 1, length + 8, 2**31, 2**63, 2**64 - 1])
        path.write_bytes(struct.pack("<Q", lie) + content[8:])
        return f"a header of {lie} bytes"
    header, done = spoil(json.loads(content[8 : 8 + length]), draw)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return f"header {done}"
