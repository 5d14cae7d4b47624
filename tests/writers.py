"""A tiny language model to write prompts with (nothing it says can be read), and a server that writes readable ones."""

from pathlib import Path
from random import Random
from typing import Any

import tiny
from servers import Answer, completion

THINGS = "cup chair boat dog kite lamp drum horse apple ladder bench clock robot tulip hat bridge".split()
COLOURS = "red green blue yellow black white purple orange grey brown".split()
PLACES = "a table, a road, a lake, a wall, a bed, a field, a roof, a stage, a cliff, a shelf".split(", ")


def build_llm(folder: Path, seed: int = 0) -> Path:
    """Write a text-only Llama of two layers, whose chat template takes contents that are strings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny._byte_pair_tokenizer(special=["<|user|>", "<|assistant|>"])
    tokenizer.chat_template = tiny.REWARD_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=tiny.SPREAD,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with tiny._seeded(seed):
        model = LlamaForCausalLM(config)
    return tiny._save(folder, model, tokenizer)


def scene(seed: int) -> str:
    """A scene of nineteen words and more, drawn from a seed."""
    draw = Random(seed)

    def some() -> str:
        return f"{draw.choice(['one', 'two', 'three'])} {draw.choice(COLOURS)} {draw.choice(THINGS)}s"

    return f"There are {some()} on {draw.choice(PLACES)}, {some()} below {draw.choice(PLACES)} and {some()}."


def good_or_bad(number: int, body: dict[str, Any]) -> Answer:
    """Write as the request asks, from its seed alone: two replies in three in the right form, one in seven cut off."""
    seed, text = body["seed"], body["messages"][-1]["content"]
    questions = [f"QUESTION: How many {THINGS[n]}s are there?" for n in range(text.count("\nQUESTION:"))]
    reply = "\n".join([f"SCENE: {scene(seed % 499)}", *questions])
    return completion(f"Sure!\n{reply}" if seed % 3 == 0 else reply, "length" if seed % 7 == 0 else "stop")
