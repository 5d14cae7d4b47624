"""Runs of the command line under every strategy; as a script: ``strategy_runs.py FOLDER [all]``, where ``write`` has
been.

What trains on two ranks trains on one that accumulates two batches; all in float64, so that what is equal shows.
"""

import json
import sys
from functools import partial
from pathlib import Path

import yaml
from dpo.drawn_pairs import draw, write_set
from forked import fork_ranks

from synthalign.cli import main

ADAPTER = {"lora": {"r": 4, "alpha": 8}}
WHOLE = {"lora": None, "reference": {"class_path": "synthalign.dpo.reference.FrozenCopy"}, "fused": False}
FSDP2 = ["--trainer.strategy", "model_parallel", "--trainer.devices", "2"]
# the name fsdp is refused on a CPU
FSDP1 = [
    "--trainer.strategy",
    '{"class_path": "synthalign.training.strategies.FSDP1Strategy"}',
    "--trainer.devices",
    "2",
]
DDP = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
SHARDS = [
    "--trainer.strategy",
    '{"class_path": "synthalign.training.strategies.FSDP2Strategy",'
    ' "init_args": {"save_distributed_checkpoint": true}}',
    "--trainer.devices",
    "2",
]
FROM = ["--ckpt_path"]
CLIPPED = [  # in float32, the only type that FSDP1 clips; Adam would forget a scale of all gradients
    *("--model.init_args.dtype", "float32", "--model.init_args.optimizer.class_path", "torch.optim.SGD"),
    *("--trainer.gradient_clip_val", "0.05", "--trainer.max_epochs", "1"),
]
ALONE = ["--trainer.accumulate_grad_batches", "2"]

RUNS = {
    "lora-alone": ("lora.yaml", ALONE),
    "lora-ddp": ("lora.yaml", DDP),
    "lora-fsdp2": ("lora.yaml", FSDP2),
    "lora-fsdp2-resumed": ("lora.yaml", [*FSDP2, *FROM, "lora-fsdp2/fit/checkpoints/step=3.ckpt"]),
    "lora-fsdp2-from-ddp": ("lora.yaml", [*FSDP2, *FROM, "lora-ddp/fit/checkpoints/step=3.ckpt"]),
    "lora-fsdp1": ("lora.yaml", FSDP1),
    "whole-alone": ("whole.yaml", ALONE),
    "whole-fsdp2": ("whole.yaml", FSDP2),
}
"""The config and the flags of each run, those that others go on with first."""

PROVEN = {
    "lora-ddp-from-fsdp2": ("lora.yaml", [*DDP, *FROM, "lora-fsdp2/fit/checkpoints/step=3.ckpt"]),
    "lora-shards": ("lora.yaml", SHARDS),
    "lora-fsdp2-from-shards": (
        "lora.yaml",
        [*SHARDS, *FROM, "lora-shards/fit/checkpoints/step=3.ckpt", "--trust_shards", "true"],
    ),
    "whole-fsdp1": ("whole.yaml", FSDP1),
    "clipped-ddp": ("lora.yaml", [*DDP, *CLIPPED]),
    "clipped-fsdp2": ("lora.yaml", [*FSDP2, *CLIPPED]),
    "clipped-fsdp1": ("lora.yaml", [*FSDP1, *CLIPPED]),
}
"""More, for the tests that take minutes."""


def write(folder: Path, policy: Path) -> Path:
    """Write the pairs, an evaluation, and a config for training an adapter and one for all weights."""
    (folder / "llava").symlink_to(policy)
    pairs = write_set(folder / "set")
    rows: list[dict] = []
    for drawing in ("red circle on white", "green square on black", "blue circle on white"):
        draw(drawing).save(folder / f"{drawing}.png")
        for label, thing in (("yes", drawing.split()[1]), ("no", "dog")):
            text = f"Is there a {thing}?"
            rows.append({"question_id": len(rows), "image": f"{drawing}.png", "text": text, "label": label})
    (folder / "pope.json").write_text(json.dumps(rows))
    settings = {"files": {"a": "pope.json"}, "images": ".", "max_new_tokens": 4}
    pope = {"class_path": "synthalign.evals.pope.POPE", "init_args": settings}
    keep = {"filename": "{step}", "save_top_k": -1, "every_n_train_steps": 1}
    for name, trained in (("lora", ADAPTER), ("whole", WHOLE)):
        optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01 if name == "lora" else 0.001}}
        config = {
            "trainer": {
                "accelerator": "cpu",
                "max_epochs": 2,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "callbacks": [
                    {"class_path": "Evaluate", "init_args": {"evals": [pope]}},
                    {"class_path": "SaveAdapter"},
                    {"class_path": "dpo.witness.Witness"},
                    {"class_path": "ModelCheckpoint", "init_args": keep},
                ],
            },
            "model": {
                "class_path": "DPOModule",
                "init_args": {
                    "policy": str(policy),
                    "dtype": "float64",
                    "loss": {"class_path": "synthalign.dpo.losses.DPO", "init_args": {"beta": 0.5}},
                    "optimizer": optimizer,
                    "schedule": {"class_path": "synthalign.dpo.schedules.WarmupCosine"},
                    **trained,
                },
            },
            "data": {
                "class_path": "SyntheticPreferenceDataModule",
                "init_args": {"batch_size": 2, "pairs": str(pairs)},
            },
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


def run(name: str) -> None:
    """Run one of RUNS, as one of its ranks, in a folder of its own."""
    config, flags = (RUNS | PROVEN)[name]
    main(["fit", "--config", config, "--trainer.default_root_dir", name, *flags])
    for file in Path().glob("rank-*.json"):
        file.replace(Path(name) / file.name)


if __name__ == "__main__":
    import os

    from synthalign.dpo.policy import LoRA, load_policy

    os.chdir(sys.argv[1])
    LoRA()(load_policy("llava"))
    for one in RUNS | PROVEN if sys.argv[2:] else RUNS:
        fork_ranks(1 if one.endswith("alone") else 2, partial(run, one))
