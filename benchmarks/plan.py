"""Hold what `synthalign plan` predicts against what a step really takes.

    python benchmarks/plan.py [--sizes small] [--device cpu] [--write docs/scaling.md] [--json runs/plan.json]

On a CPU the bytes of all tensors alive are counted while real steps of the engine run on random weights; on CUDA the
measure is `torch.cuda.max_memory_allocated`. `added` leaves out what is there all the time: weights, adapter,
gradients, optimizer state.
"""

import argparse
import gc
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ladder import scene  # type: ignore[import-not-found]
from scaling import fill, table  # type: ignore[import-not-found]
from torch import Tensor

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.checkpointing import checkpoint_layers
from synthalign.dpo.features import image_features
from synthalign.dpo.fused import fuse
from synthalign.dpo.layouts import Layout, Rows, Tree, Trie
from synthalign.dpo.logps import pair_logps
from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import LoRA, adapters_off, train_language
from synthalign.plan import Live, Memory, memory_of, optimizer_cost
from synthalign.planning.batches import Lengths, made_up
from synthalign.planning.step import count, shares_of, skeleton
from synthalign.types import PairLogps


class Setting(NamedTuple):
    """How a step is taken."""

    name: str
    dtype: str = "float32"
    rank: int | None = 16  # None: the language model itself
    pairs: int = 2
    layout: Layout = Tree()
    fused: bool = True
    checkpointing: bool = False
    mixed: bool = False


SETTINGS = (
    Setting("LoRA, fp32"),
    Setting("LoRA, fp32, unfused", fused=False),
    Setting("LoRA, fp32, checkpointing", checkpointing=True),
    Setting("LoRA, bf16", dtype="bfloat16"),
    Setting("LoRA, bf16, r 64, one pair", dtype="bfloat16", rank=64, pairs=1),
    Setting("LoRA, bf16, four pairs, checkpointing", dtype="bfloat16", pairs=4, checkpointing=True),
    Setting("LoRA, bf16, plain rows", dtype="bfloat16", layout=Rows()),
    Setting("LoRA, bf16, four pairs, trie", dtype="bfloat16", pairs=4, layout=Trie()),
    Setting("LoRA, fp32 under bf16-mixed", mixed=True),
    Setting("full, fp32", rank=None),
    Setting("full, fp32 under bf16-mixed", rank=None, mixed=True),
    Setting("full, fp32 under bf16-mixed, checkpointing", rank=None, mixed=True, checkpointing=True),
)


class Found(NamedTuple):
    """What was predicted and what was counted, bytes."""

    name: str
    predicted: int
    counted: int
    predicted_added: int
    counted_added: int


def batch_of(size: Any, num_pairs: int) -> PreferenceBatch:  # noqa: ANN401
    """Make the batch."""
    lengths = [Lengths(question + 1, chosen, rejected) for question, chosen, rejected in size.lengths[:num_pairs]]
    return made_up(size.config(), lengths)


def predicted(setting: Setting, size: Any, *, on_cuda: bool) -> Memory:  # noqa: ANN401
    """Reckon a step without taking it."""
    lora = None if setting.rank is None else LoRA(r=setting.rank)
    network = skeleton(
        size.config(),
        dtype=setting.dtype,  # type: ignore[arg-type]
        lora=lora,
        fused=setting.fused,
        gradient_checkpointing=setting.checkpointing,
    )
    batch = batch_of(size, setting.pairs)
    counted = count(
        network,
        batch,
        setting.layout,
        reference="cached" if lora is None else "adapters_off",
        autocast=torch.bfloat16 if setting.mixed else None,
        on_cuda=on_cuda,
    )
    return memory_of(
        shares_of(network),
        counted,
        optimizer_cost(torch.optim.AdamW, torch.float32, foreach=on_cuda),
        spread="whole",
        world_size=1,
        frozen_copy=False,
        images=batch.images["pixel_values"].nbytes,
    )


def taken(setting: Setting, size: Any, device: torch.device) -> tuple[int, int]:  # noqa: ANN401
    """Take two steps of the engine; return the peak of the second, and what is there all the time, bytes."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    with device:
        network = AutoModelForImageTextToText.from_config(size.config(), dtype=getattr(torch, setting.dtype))
        network.eval().requires_grad_(False)
        if setting.rank is None:
            train_language(network)
        else:
            network = LoRA(r=setting.rank)(network)
    if setting.fused:
        fuse(network)
    if setting.checkpointing:
        checkpoint_layers(network)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-6)
    batch, loss_of = batch_of(size, setting.pairs), DPO(beta=0.1)

    def step() -> Tensor:
        here = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.mixed):
            features = image_features(network, here)
            laid = setting.layout(network, here)
            if setting.rank is None:
                zeros = torch.zeros(setting.pairs, device=device)
                reference = PairLogps(zeros, zeros, zeros, zeros)
            else:
                with torch.no_grad(), adapters_off(network):
                    reference = pair_logps(network, laid, features)
            loss = loss_of(pair_logps(network, laid, features), reference).loss.sum()
        optimizer.zero_grad()  # between the passes, as Lightning does
        loss.backward()
        optimizer.step()
        return loss.detach()

    weights = sum({id(t): t.nbytes for t in (*network.parameters(), *network.buffers())}.values())
    if device.type == "cuda":
        step()
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        lasting = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device), lasting
    with Live() as live:
        step()
        gc.collect()
        lasting = live.now
        live.rest()
        step()
    images = batch.images["pixel_values"].nbytes
    return weights + images + live.peak, weights + lasting


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=tuple(scene.SIZES), default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", help="settings whose names contain this")
    parser.add_argument("--write", type=Path, help="file for the table, between <!-- counted: begin --> marks")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    device, size = torch.device(options.device), scene.SIZES[options.sizes]
    found = []
    for setting in (one for one in SETTINGS if not options.only or options.only in one.name):
        memory = predicted(setting, size, on_cuda=device.type == "cuda")
        peak, lasting = taken(setting, size, device)
        found.append(Found(setting.name, memory.peak, peak, memory.step, peak - lasting))
        print(" | ".join(row(found[-1])), file=sys.stderr, flush=True)
        gc.collect()
    worst = max((abs(one.predicted / one.counted - 1) for one in found), default=0.0)
    print(f"\nfarthest off: {worst:.1%} of the whole", file=sys.stderr)
    made = table(HEADS, [row(one) for one in found])
    if options.write is None:
        print(made)
    else:
        fill(options.write, {"counted": made})
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([one._asdict() for one in found], indent=1) + "\n", encoding="utf-8")


HEADS = ["step", "predicted / MiB", "counted / MiB", "ratio", "added, predicted", "counted", "ratio"]


def row(one: Found) -> list[str]:
    """Write a line of the table."""
    mib = [f"{value / 2**20:.1f}" for value in one[1:]]
    whole, added = one.predicted / one.counted, one.predicted_added / one.counted_added
    return [one.name, mib[0], mib[1], f"{whole:.3f}", mib[2], mib[3], f"{added:.3f}"]


if __name__ == "__main__":
    main()
