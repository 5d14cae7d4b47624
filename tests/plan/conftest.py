"""A run's configuration with six pairs."""

import json

import pytest
import yaml
from PIL import Image


@pytest.fixture
def config(tmp_path, tiny_llava, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(6):
        Image.new("RGB", (40, 30), (40 * number, 90, 10)).save(tmp_path / "images" / f"{number}.png")
        asked = {"from": "human", "value": "<image> What is in the picture?"}
        rows.append(
            {
                "id": str(number),
                "image": f"images/{number}.png",
                "conversations": [asked, {"from": "gpt", "value": "A picture in one colour, which fills all of it."}],
                "rejected_conversations": [asked, {"from": "gpt", "value": "There are seven dogs and a red cup here."}],
            }
        )
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    settings = {
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "accumulate_grad_batches": 2},
        "model": {
            "class_path": "DPOModule",
            "init_args": {
                "policy": str(tiny_llava),
                "lora": {"r": 4, "alpha": 8},
                "loss": {"class_path": "synthalign.dpo.losses.DPO", "init_args": {"beta": 0.1}},
            },
        },
        "data": {
            "class_path": "SyntheticPreferenceDataModule",
            "init_args": {"pairs": "pairs.json", "batch_size": 2},
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path
