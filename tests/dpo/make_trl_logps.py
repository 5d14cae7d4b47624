"""Write trl_logps.json: what TRL's DPOTrainer computes for four pairs, for test_trl.py to compare with.

Run from the repository's root, where the package is installed with its ``bench`` extra:

    PYTHONPATH=tests python tests/dpo/make_trl_logps.py

TRL gets its prompts and completions as plain text. Given conversations it would leave out the beginning of sequence,
which the tiny model's template (like LLaVA-1.5's) leaves to the tokenizer, and which TRL tells the tokenizer not to
put: other tokens would be scored.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import peft
import tiny
import torch
import transformers
import trl
from datasets import Dataset, Features, Image, List, Value
from dpo.adapters import spread
from dpo.drawn_pairs import FOUR, draw
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer

from synthalign.dpo.policy import LANGUAGE_LINEARS

BETA = 0.1


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        figures = compute(Path(scratch))
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    versions["torch"] = torch.__version__
    lines = [f' "{key}": {json.dumps(value)}' for key, value in {"versions": versions, "beta": BETA, **figures}.items()]
    path = Path(__file__).with_name("trl_logps.json")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def compute(scratch: Path) -> dict[str, Any]:
    folder = tiny.build_llava(scratch / "llava")
    processor = AutoProcessor.from_pretrained(folder)
    rows = [
        {
            "images": [draw(pair.drawing)],
            "prompt": f"<s>USER: <image>\n {pair.question} ASSISTANT:",
            "chosen": f" {pair.chosen}</s>",
            "rejected": f" {pair.rejected}</s>",
        }
        for pair in FOUR
    ]
    texts = dict.fromkeys(("prompt", "chosen", "rejected"), Value("string"))
    trainer = DPOTrainer(
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32),
        args=DPOConfig(
            str(scratch / "run"),
            beta=BETA,
            per_device_train_batch_size=len(rows),
            max_length=None,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
        ),
        train_dataset=Dataset.from_list(rows, features=Features({"images": List(Image()), **texts})),
        processing_class=processor,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=LANGUAGE_LINEARS),
    )
    spread(trainer.model)
    sums: list[torch.Tensor] = []
    trainer.model.register_forward_hook(lambda module, args, output: sums.append(output.log_probs.sum(1).detach()))
    batch = trainer.data_collator([dict(row) for row in rows])
    loss = trainer.compute_loss(trainer.model, dict(batch))
    policy, reference = (one.view(2, len(rows)).tolist() for one in sums)  # chosen rows, then rejected ones
    said = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    return {
        "ids": [pair.id for pair in FOUR],
        "chosen_token_ids": said[: len(rows)],
        "rejected_token_ids": said[len(rows) :],
        "policy_chosen": policy[0],
        "policy_rejected": policy[1],
        "reference_chosen": reference[0],
        "reference_rejected": reference[1],
        "loss": loss.item(),
    }


if __name__ == "__main__":
    main()
