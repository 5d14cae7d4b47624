"""A family goes through `fit` and `test` by the command line, with no torchvision installed: the tests of two files.

Each of the files says which families it takes, so that two cores can share them.
"""

import csv
import io
import json
import math
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from dpo.drawn_pairs import Pair, draw, write_set
from peft import PeftModel
from PIL.Image import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
from vlm.hub_folders import Family, build, whole_processor
from vlm.watching import Watch

from synthalign.cli import main

LINEARS = ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"] + [f"self_attn.{part}_proj" for part in "kovq"]
NEW_TOKENS = 6
SIZES = {"red circle on white": (48, 36), "green square on black": (30, 64)}  # px; unlike tokens, in many families
PAIRS = [
    Pair("1", "red circle on white", "What is it?", "It is a red circle.", "It is a dog."),
    Pair("2", "red circle on white", "Is there a circle in the image?", "Yes, there is.", "No."),
    Pair("3", "green square on black", "What is it?", "A green square.", "There is no dog and no cup."),
    Pair("4", "green square on black", "Which colours are there?", "Green and black.", "Red."),
]
ASKED = [
    (drawing, f"Is there a {named}?", label)
    for drawing in SIZES
    for named, label in ((drawing.partition(" on ")[0], "yes"), ("dog in the image", "no"))
]


class Run(NamedTuple):
    """A fit of two steps, and a test of its adapter."""

    family: Family
    model: Path
    folder: Path  # with fit/ and test/
    said: str  # on the terminal
    gradients: list[dict[str, float]]
    network: Any  # as the fit left it


@pytest.fixture(scope="module")
def run(request, tmp_path_factory) -> Iterator[Run]:
    family: Family = request.param
    folder = tmp_path_factory.mktemp(family.name)
    model = build(family, folder / "model")
    write_set(folder / "set", PAIRS)
    for drawing in SIZES:
        picture(drawing).save(folder / "set/images" / file_of(drawing))
    rows = [
        {"question_id": number, "image": file_of(drawing), "text": text, "label": label}
        for number, (drawing, text, label) in enumerate(ASKED, 1)
    ]
    (folder / "pope.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config(family)), encoding="utf-8")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["synthalign"])  # the command line writes it
        if family.spells:
            patch.setattr(family.spells, str)
        main(["fit", "--config", "config.yaml"])
        assert Watch.last is not None
        adapter = ["--model.init_args.adapter", "run/fit/adapter", "--model.init_args.keep_features_gib", "0"]
        main(["test", "--config", "config.yaml", *adapter])
        yield Run(family, model, folder / "run", said.getvalue(), Watch.last.gradients, Watch.last.network)


def picture(drawing: str) -> Image:
    return draw(drawing, SIZES[drawing])


def file_of(drawing: str) -> str:
    return f"{drawing.replace(' ', '-')}.png"


def config(family: Family) -> dict[str, Any]:
    pope = {"files": {"random": "pope.jsonl"}, "images": "set/images", "suffix": "", "max_new_tokens": NEW_TOKENS}
    evals = [{"class_path": "synthalign.evals.pope.POPE", "init_args": pope}]
    policy: dict[str, Any] = {
        "policy": "model",
        "dtype": "float64",  # so that what is equal shows
        "lora": {"r": 4, "alpha": 8},
        "loss": {"class_path": "synthalign.dpo.losses.DPO", "init_args": {"beta": 0.5}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        "layout": {"class_path": "synthalign.dpo.layouts.Trie"},
        "keep_features_gib": 0.1,
        "max_chosen_fall": None,
    }
    if not family.template:
        policy["chat_template"] = family.chat_template
    return {
        "trainer": {
            "default_root_dir": "run",
            "accelerator": "cpu",
            "max_epochs": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "callbacks": [
                {"class_path": "SaveAdapter"},
                {"class_path": "Evaluate", "init_args": {"evals": evals, "every_n_epochs": None}},
                {"class_path": "vlm.watching.Watch"},
            ],
        },
        "model": {"class_path": "DPOModule", "init_args": policy},
        "data": {
            "class_path": "SyntheticPreferenceDataModule",
            "init_args": {"pairs": "set/pairs.json", "batch_size": 4},
        },
    }


def samples(run: Run, name: str) -> list[dict[str, Any]]:
    with (run.folder / name / "pope.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def plain(run) -> tuple[Any, Any]:
    """The base, and the policy, by transformers and peft alone."""
    base, other = (AutoModelForImageTextToText.from_pretrained(run.model, dtype=torch.float64) for _ in range(2))
    return base.eval(), PeftModel.from_pretrained(other, run.folder / "fit/adapter").eval()


def encoded(run: Run, image: Any, question: str) -> dict[str, Any]:
    """One question by the family's own processor."""
    processor = whole_processor(run.family, run.model)
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    inputs = dict(processor(images=[[image]], text=[text], return_tensors="pt"))
    inputs.pop("labels", None)  # PaliGemma's gives some, unasked
    return {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}


def test_losses_are_finite_and_the_first_is_log_2(run):
    with (run.folder / "fit/metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6) and losses[1] < losses[0]


def test_every_linear_of_the_language_model_learns_and_nothing_else(run):
    layers = f"base_model.model.model.{run.family.language}.layers"
    expected = {
        f"{layers}.{layer}.{linear}.lora_{factor}.default.weight"
        for layer in range(2)
        for linear in LINEARS
        for factor in "AB"
    }
    first, second = run.gradients
    assert first.keys() == second.keys() == expected
    assert {name for name, value in first.items() if value} == {name for name in expected if "lora_B" in name}
    assert all(second.values())  # B is zero at first, hence the gradient of A


def test_images_and_prompts_are_read_once(run):
    assert "layout:" not in run.said and "replies:" not in run.said  # which say what is not carried, and why


def test_answers_are_those_of_plain_generate(run, plain):
    before, after = (samples(run, f"fit/samples/epoch-{epoch:03}") for epoch in (0, 2))
    assert samples(run, "test/samples/base") == before and samples(run, "test/samples/policy") == after
    assert before != after
    processor = whole_processor(run.family, run.model)
    for rows, network in zip((before, after), plain, strict=True):
        for row, (drawing, question, _) in zip(rows, ASKED, strict=True):
            inputs = encoded(run, picture(drawing), question)
            said = network.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
            text = processor.tokenizer.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            assert row["reply"] == text.strip()


def test_the_saved_adapter_gives_plain_peft_the_same_logits(run, plain):
    inputs = encoded(run, picture(PAIRS[2].drawing), PAIRS[2].question)
    with torch.no_grad():
        trained = run.network.eval()(**inputs).logits
        base, found = (network(**inputs).logits for network in plain)
    torch.testing.assert_close(found, trained, rtol=1e-9, atol=1e-9)
    assert (found - base).abs().max() > 0.01
    assert len(load_file(run.folder / "fit/adapter/adapter_model.safetensors")) == 2 * 2 * len(LINEARS)
