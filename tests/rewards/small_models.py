"""Folders of small reward models, as their authors publish them: a checkpoint of torch, and what belongs to it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rewards.drawn import draw_weights
from tiny import SPREAD, _byte_pair_tokenizer

HERE = Path(__file__).parent

# Llama 3's turns in small: the end of a turn, a header, and an empty line before what is said.
ARMORM_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start|>' + message.role + '<|end|>\\n\\n' + message.content + '<|eot|>' }}
{%- endfor %}"""


def golden(name: str) -> dict[str, Any]:
    """Return what a make_*_golden.py has written."""
    return json.loads((HERE / f"{name}.json").read_text())


def build_image_reward(folder: Path) -> Path:
    """Write ImageReward: ImageReward.pt and med_config.json, and BERT's tokenizer in a folder of its own."""
    from transformers import BertTokenizer

    made = golden("image_reward")
    weights = draw_weights(made["shapes"])
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(weights, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(made["config"]))
    BertTokenizer(vocab={token: i for i, token in enumerate(made["vocabulary"])}).save_pretrained(folder / "bert")
    return folder


def build_hps(folder: Path) -> Path:
    """Write HPSv2: HPS_v2.1_compressed.pt, and the CLIP it comes from in a folder of its own, without weights."""
    from transformers import CLIPConfig, CLIPTokenizer

    made = golden("hps")
    torch.save({"state_dict": draw_weights(made["shapes"])}, folder / "HPS_v2.1_compressed.pt")
    vision, text, vocabulary = made["vision"], made["text"], made["vocabulary"]
    start, end = len(vocabulary) - 2, len(vocabulary) - 1
    CLIPConfig(
        projection_dim=made["embed_dim"],
        vision_config={
            **_tower(vision["width"], vision["layers"], vision["width"] // vision["head_width"]),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        text_config={
            **_tower(text["width"], text["layers"], text["heads"]),
            "vocab_size": len(vocabulary),
            "max_position_embeddings": text["context_length"],
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
        },
    ).save_pretrained(folder / "clip")
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    CLIPTokenizer(
        vocab={names.get(token, token): i for i, token in enumerate(vocabulary)},
        merges=[tuple(merge.split()) for merge in made["merges"]],
        model_max_length=text["context_length"],
    ).save_pretrained(folder / "clip")
    return folder


def _tower(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "gelu",
    }


def build_armorm(folder: Path, *, width: int = 32, ratings: int = 5, shards: int = 1, spread: float = SPREAD) -> Path:
    """Write ArmoRM: a Llama, the head of its ratings and the gate, in one file or in several; config as published."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaModel

    tokenizer = _byte_pair_tokenizer(special=["<|start|>", "<|end|>", "<|eot|>", "[PAD]"])
    tokenizer.chat_template = ARMORM_TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=spread,
        max_position_embeddings=256,
        pad_token_id=tokenizer.convert_tokens_to_ids("[PAD]"),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|eot|>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = {f"model.{name}": tensor for name, tensor in LlamaModel(config).state_dict().items()}
    gate = 16
    sides = [(gate, width), (gate, gate), (gate, gate), (ratings, gate)]
    shapes: dict[str, Sequence[int]] = {
        "regression_layer.weight": (ratings, width),
        "reward_transform_matrix": (ratings, ratings),
        "gating.logit_scale": (1,),
    }
    for n, side in enumerate(sides):
        shapes |= {f"gating.layers.{n}.weight": side, f"gating.layers.{n}.bias": side[:1]}
    heads = draw_weights(shapes)
    heads["gating.layers.3.weight"] *= 20  # or the temperature would make all weights alike
    weights |= heads
    described = {**config.to_dict(), "architectures": ["LlamaForRewardModelWithGating"]}
    described["auto_map"] = {
        "AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating",
    }
    (folder / "config.json").write_text(json.dumps(described))
    names = sorted(weights)
    files = {n: f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)}
    if shards == 1:
        files = {0: "model.safetensors"}
    place = {name: files[n % shards] for n, name in enumerate(names)}
    for file in files.values():
        save_file({name: weights[name] for name in names if place[name] == file}, folder / file, {"format": "pt"})
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return folder
