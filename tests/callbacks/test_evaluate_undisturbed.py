"""Training a real model with the callback is training it without, bit for bit."""

import gc
import hashlib
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from brightness import Brightness, evaluations, fit
from dpo.drawn_pairs import FIT, draw, write_set
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.utils.data import DataLoader
from transformers import Cache

from synthalign.callbacks.evaluate import Evaluate
from synthalign.callbacks.undisturbed import undisturbed
from synthalign.dpo.batch import PairTokens, collate
from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import LoRA
from synthalign.evals.chair import CHAIR
from synthalign.evals.pope import POPE
from synthalign.modules import DPOModule
from synthalign.vlm import Chat

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),  # the frozen base is meant to be
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


@pytest.fixture(scope="module")
def evals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    write_set(folder, FIT)
    names = [f"{pair.drawing.replace(' ', '-')}.png" for pair in FIT[:3]]
    rows = [
        {"question_id": number, "image": name, "text": f"Is there a {thing}?", "label": "yes"}
        for number, (name, thing) in enumerate((name, thing) for name in names for thing in ("square", "dog"))
    ]
    (folder / "pope.json").write_text(json.dumps(rows))
    (folder / "captions.json").write_text(json.dumps([{"image": name, "objects": ["square"]} for name in names]))
    (folder / "objects.txt").write_text("square\n")
    images = folder / "images"
    return [
        POPE(files={"random": folder / "pope.json"}, images=images, max_new_tokens=3),
        CHAIR(file=folder / "captions.json", images=images, synonyms=folder / "objects.txt", max_new_tokens=6),
    ]


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


class State(Callback):
    """Keeps, at the start and after every batch, all that training hangs on."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        # transformers hangs hooks on a vision tower at its first forward, whoever asks for it
        self.seen.append(state_of(pl_module) | {"hooks": None})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(state_of(pl_module))


def state_of(module) -> dict[str, Any]:
    network = module.network
    flags = ("training", "gradient_checkpointing", "_disable_adapters", "_active_adapter", "merged_adapters")
    attention = "_attn_implementation"
    return {
        "modules": {
            name: {flag: str(getattr(part, flag)) for flag in flags if hasattr(part, flag)}
            for name, part in module.named_modules()
        },
        "hooks": {
            name: (len(part._forward_hooks), len(part._forward_pre_hooks), "forward" in vars(part))
            for name, part in module.named_modules()
        },
        "configs": {
            name: [part.config.to_json_string(use_diff=False), getattr(part.config, attention, None)]
            for name, part in network.named_modules()
            if hasattr(part, "config")
        },
        "generation": network.generation_config.to_json_string(use_diff=False),
        "parameters": {
            name: (p.requires_grad, digest(p), None if p.grad is None else digest(p.grad))
            for name, p in module.named_parameters()
        },
        "buffers": {name: digest(buffer) for name, buffer in module.named_buffers()},
        "random": [
            random.getstate(),
            str(numpy.random.get_state()),
            digest(torch.get_rng_state()),
            [digest(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        ],
        "switches": switches(),
        "caches": sum(issubclass(type(one), Cache) for one in gc.get_objects()),
    }


def switches() -> tuple:
    cudnn = torch.backends.cudnn
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_cache_enabled(),
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
    )


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def train(folder: Path, policy: Path, callbacks: list[Callback], precision: Any = "32-true", **settings: Any):
    """Train a LLaVA on eight pairs, two a step, with dropout; give its losses and its trained weights' digests."""
    module = DPOModule(
        policy=str(policy),
        loss=DPO(beta=0.5),
        lora=LoRA(r=4, alpha=8, dropout=0.2),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        **settings,
    )
    seed_everything(0, verbose=False)
    losses = Losses()
    chat = Chat(model=str(policy))
    pairs = []
    for pair in FIT:
        chosen, rejected = (chat.response_ids(pair.question, answer) for answer in (pair.chosen, pair.rejected))
        pairs.append(PairTokens(pair.id, draw(pair.drawing), pair.drawing, pair.question, chosen, rejected))
    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        logger=False,
        default_root_dir=folder,
        max_epochs=1,
        callbacks=[*callbacks, losses],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(pairs, batch_size=2, shuffle=True, collate_fn=partial(collate, chat=chat)))  # type: ignore[arg-type]
    return losses.values, {name: digest(p) for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_checkpointing": True, "keep_features_gib": 0.1, "fused": False, "precision": "bf16-mixed"},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_losses_and_adapter_are_the_same_bits_with_and_without(tmp_path, tiny_llava, evals, settings):
    alone = train(tmp_path / "alone", tiny_llava, [], **settings)
    before, after = State(), State()
    callback = Evaluate(evals=evals, every_n_steps=1)
    watched = train(tmp_path / "watched", tiny_llava, [before, callback, after], **settings)
    assert len(alone[0]) == 4 and len(set(alone[0])) > 2
    assert watched == alone
    assert [entry["step"] for entry in callback.history] == list(range(5))
    said = [path.read_text() for path in (tmp_path / "watched").glob("samples/*/pope.jsonl")]
    assert len(said) == len(set(said)) == 5  # the margins at least change with every step
    assert len(before.seen) == 5 and before.seen[0] != before.seen[1]
    for one, other in zip(before.seen, after.seen, strict=True):
        assert one == other


def test_undisturbed_gives_back_every_switch_that_changes_how_training_computes():
    expected = switches()
    with undisturbed(torch.nn.Linear(1, 1)):
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.backends.cudnn.deterministic = not torch.backends.cudnn.deterministic
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_float32_matmul_precision("medium")
        torch.set_default_dtype(torch.float64)
        assert switches() != expected
    assert switches() == expected


def test_every_random_state_goes_on_as_if_nobody_had_drawn(tmp_path):
    _, alone = fit(tmp_path, [], Brightness())
    callback = Evaluate(evals=evaluations(tmp_path), every_n_steps=1)
    _, watched = fit(tmp_path, [callback], Brightness(), logger=False)
    assert watched.asked and len(alone.noise) == 8
    assert watched.noise == alone.noise and watched.losses == alone.losses
