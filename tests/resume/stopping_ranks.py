"""Two ranks of a run: undisturbed, stopped by a signal, and going on. As a script: the exit statuses of each."""

import json
import os
import sys

from forked import statuses

from synthalign.cli import main

ON_TWO = ["fit", "--config", "config.yaml", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
RUNS: tuple[list[str], ...] = ([], ["--config", "signalled.yaml"], ["--ckpt_path", "runs/fit-2"])

if __name__ == "__main__":
    from synthalign.dpo.policy import LoRA, load_policy

    os.chdir(sys.argv[1])
    LoRA()(load_policy("llava"))  # imported once
    codes = []
    for flags in RUNS:
        codes.append(statuses(2, lambda: main([*ON_TWO, *flags])))  # noqa: B023 - forked at once
    sys.stdout.write(json.dumps(codes))
