"""A plan for people: what is trained, an epoch, memory."""

from collections.abc import Iterator

import torch

from synthalign.plan import SHARDED, Spread
from synthalign.plan.report import Row, Section, duration, number, size
from synthalign.planning.plan import Plan
from synthalign.planning.run import Reckoned

HOW: dict[Spread, str] = {
    "whole": "no strategy",
    "ddp": "DDP",
    "sharded": "FSDP2",
    "fsdp": "the older FSDP, reckoned as FSDP2",
}


def sections(made: Plan) -> list[Section]:
    """Lay a plan out."""
    run, shares, memory = made.largest.run, made.largest.shares, made.largest.memory
    trained = shares.trained_numbers
    what = f"LoRA, r {run.lora.r}" if run.lora is not None else "the whole language model"
    weights = [
        Row("trained", f"{number(trained)}", what),
        Row("frozen", f"{number(made.largest.frozen)}", "quantised: " + run.quantization if run.quantization else ""),
        Row("saved adapter", size(shares.trained), "") if run.lora is not None else Row("saved", size(shares.trained)),
        Row("optimizer", made.largest.optimizer.name, f"{made.largest.optimizer.state:.2f} bytes a trained number"),
    ]
    pairs, steps = made.pairs, made.steps
    layout = type(run.layout).__name__ + ("" if made.largest.carried else ": the layout asked for would get it wrong")
    epoch = [
        Row("pairs", f"{pairs.num_pairs:,}", pairs.source),
        Row("optimizer steps", f"{steps:,}", f"of {run.accumulate} batches on each device"),
        Row("pairs a step", f"{pairs.num_pairs / steps:.1f}"),
        Row("tokens a step", f"{pairs.tokens / steps:,.0f}", f"layout {layout}"),
        Row("images a step", f"{pairs.num_images / steps:.1f}", "encoded once each"),
        Row("largest batch", f"{pairs.largest.tokens:,}", f"tokens, of {len(pairs.largest.batch)} pairs, for memory"),
        Row("operations an epoch", number(made.operations)),
    ]
    if made.speed is not None and made.epoch_s is not None:
        epoch.append(Row("speed of a device", f"{number(made.speed.operations)}/s", made.speed.source))
        epoch.append(Row("time of an epoch", duration(made.epoch_s), "without evaluations, loading and waiting"))
    elif run.on_cuda and not torch.cuda.is_available():
        epoch.append(Row("time of an epoch", "unknown", "no GPU is here: --tflops"))
    if (traffic := made.largest.traffic).total:
        of = f"{size(traffic.gathered)} of weights, {size(traffic.reduced)} of gradients"
        epoch.append(Row("sent by each device a step", size(traffic.total), of))
    parts = [Row(name, size(value), remark) for name, value, remark in _parts(made.largest) if value]
    parts.append(Row("peak", size(memory.peak), "of training; keys and values of evaluations are not in it"))
    parts.append(Row("available", "unknown" if made.available is None else size(made.available), made.available_from))
    return [
        Section("What is trained", weights),
        Section("An epoch", epoch),
        Section(f"Memory of a device ({HOW[run.spread]}, {run.world_size} in all)", parts),
    ]


def _parts(found: Reckoned) -> Iterator[tuple[str, int, str]]:
    run, memory = found.run, found.memory
    share = f"1/{run.world_size} of it" if run.spread in SHARDED else ""
    of_copy = f"a second model, {share if run.spread == 'sharded' else 'whole'}"
    yield "language model", memory.language, ", ".join(filter(None, [run.quantization or "", share]))
    yield "vision tower, projector", memory.encoder, "whole"
    yield "trained weights", memory.trained, share
    yield "gradients", memory.gradients, share
    yield "optimizer state", memory.optimizer, share
    yield "frozen reference", memory.reference, of_copy
    yield "buckets of DDP", memory.buckets, "gradients once more"
    yield "gathered by FSDP", memory.gathered, "embeddings, head, two layers; gradients of a layer"
    yield "pixels", memory.images, ""
    kept = "inputs of layers" if run.gradient_checkpointing else "without gradient checkpointing"
    yield "activations kept", memory.activations, kept
    yield "passing", memory.passing, "most besides, as logits or a layer's own"
    stays = max(0, memory.update - memory.gathered - memory.activations - memory.passing)
    yield "more while the optimizer steps", stays, ""
