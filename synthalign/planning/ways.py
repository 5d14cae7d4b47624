"""What would make a run smaller, tried."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.policy import LoRA
from synthalign.plan import SHARDED
from synthalign.plan.report import Row, size
from synthalign.planning.plan import Plan
from synthalign.planning.reading import Read, check
from synthalign.planning.run import Reckoned, reckon, spread_over

OTHER_DEVICES = (2, 4, 8, 16, 32, 64)
"""Numbers of devices that are tried where a run does not fit."""


def ways(made: Plan) -> Iterator[Row]:
    """Try what makes a run smaller, each by itself and then together."""
    run, batch, limit = made.largest.run, made.pairs.largest.batch, made.read.data.batch_limit
    changes: list[tuple[str, dict[str, Any], PreferenceBatch]] = []
    if not run.gradient_checkpointing:
        changes.append(("model.init_args.gradient_checkpointing: true", {"gradient_checkpointing": True}, batch))
    if len(batch) > 1:
        key, least = ("batch_size", 1) if limit.max_tokens is None else ("max_tokens", made.pairs.longest.tokens)
        changes.append((f"data.init_args.{key}: {least}", {}, made.pairs.longest.batch))
    if run.quantization is None and run.lora is not None and run.spread not in SHARDED and run.reference != "copy":
        changes.append(("model.init_args.quantization: nf4", {"quantization": "nf4"}, batch))
    if run.lora is None:
        changes.append(("lora in place of full fine-tuning", {"lora": LoRA(), "reference": "adapters_off"}, batch))
    everything: dict[str, Any] = {}
    smallest = batch
    for name, change, used in changes:
        yield _tried(made, name, reckon(replace(run, **change), used))
        everything |= change
        smallest = min(smallest, used, key=len)
    if len(changes) > 1:
        yield _tried(made, "all of these", reckon(replace(run, **everything), smallest))
    if made.largest.encoder_trained or not _may_be_sharded(made.read):
        return
    for count in OTHER_DEVICES:
        if count > (run.world_size if run.spread == "sharded" else 1):
            other = spread_over(made.largest, "sharded", count)
            row = _tried(made, f"trainer.strategy: model_parallel on {count} devices", other)
            if row.remark == "fits" or count == OTHER_DEVICES[-1]:
                yield row
                return


def _may_be_sharded(found: Read) -> bool:
    try:
        check(found.module, sharded=True)
    except ValueError:
        return False
    return True


def _tried(made: Plan, name: str, found: Reckoned) -> Row:
    assert made.available is not None
    fits = found.memory.peak <= made.available - made.reserve
    return Row(name, size(found.memory.peak), "fits" if fits else "does not fit")
