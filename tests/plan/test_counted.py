"""What a step is said to take, held against a step of a real run: the trainer's own, on drawn pairs."""

from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch
from dpo.drawn_pairs import FIT, draw
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader
from transformers import AutoConfig

from synthalign.dpo.batch import PairTokens, collate
from synthalign.dpo.layouts import Rows, Tree
from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import LoRA
from synthalign.dpo.reference import AdaptersOff, FrozenCopy
from synthalign.modules import DPOModule
from synthalign.plan import Live
from synthalign.planning.calibrate import calibrate
from synthalign.planning.run import Run, reckon
from synthalign.vlm import Chat

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")

WITHIN = 0.15
RANK = LoRA(r=8)
EVERYWHERE = LoRA(r=8, target_modules=r".*\.(q_proj|v_proj|fc1|fc2)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.build_llava(tmp_path_factory.mktemp("llava64"), hidden_size=64))


@pytest.fixture(scope="module")
def pairs(folder):
    chat = Chat(model=folder)

    def encode(pair):
        sides = (chat.response_ids(pair.question, " ".join([answer] * 20)) for answer in (pair.chosen, pair.rejected))
        return PairTokens(pair.id, draw(pair.drawing), pair.drawing, pair.question, *sides)

    return [encode(pair) for pair in FIT[:2]], partial(collate, chat=chat)


class Watch(Callback):
    """Counts what the second step adds to what the first one left."""

    def __init__(self):
        self.live = Live()

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            self.live.__enter__()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 1:
            self.live.__exit__(None, None, None)


def step_of_a_run(folder, pairs, **settings):
    """Train two steps; return the bytes that the second takes at its highest, weights and optimizer left out."""
    rows, put_together = pairs
    module = DPOModule(policy=folder, loss=DPO(beta=0.5), **settings.pop("module"))
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        callbacks=[watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    loader = DataLoader(rows * 2, batch_size=len(rows), collate_fn=put_together)
    trainer.fit(module, loader, loader)
    return watch.live.peak


@pytest.mark.parametrize(
    ("run", "module"),
    [
        ({"layout": Tree()}, {}),
        ({"layout": Tree(), "dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        ({"layout": Tree(), "gradient_checkpointing": True}, {"gradient_checkpointing": True}),
        ({"layout": Rows()}, {"layout": Rows()}),
        ({"layout": Tree(), "quantization": "nf4"}, {"quantization": "nf4"}),
        ({"layout": Tree(), "autocast": torch.bfloat16}, {}),
        ({"layout": Tree(), "lora": EVERYWHERE}, {"lora": EVERYWHERE}),
        ({"layout": Tree(), "lora": None, "reference": "copy"}, {"lora": None, "reference": FrozenCopy()}),
        (
            {"layout": Tree(), "lora": None, "reference": "copy", "autocast": torch.bfloat16},
            {"lora": None, "reference": FrozenCopy()},
        ),
    ],
    ids=["LoRA", "bf16", "checkpointing", "rows", "nf4", "mixed", "tower", "full", "full, mixed"],
)
def test_a_step_takes_what_is_said(folder, pairs, run, module):
    rows, put_together = pairs
    precision = "bf16-mixed" if "autocast" in run else "32-true"
    module = {"lora": RANK, "reference": AdaptersOff(), **module}
    taken = step_of_a_run(folder, pairs, module=module, precision=precision)
    said = reckon(
        Run(config=AutoConfig.from_pretrained(folder), **{"lora": RANK, "on_cuda": False, **run}), put_together(rows)
    )
    # the trainer's second step begins with the first one's gradients, which Live has not seen
    assert max(said.step.forward, said.step.fresh) == pytest.approx(taken, rel=WITHIN)


def test_operations_are_those_of_the_formula(folder, pairs):
    rows, put_together = pairs
    batch = put_together(rows)
    config = AutoConfig.from_pretrained(folder)
    run = Run(config=config, lora=RANK, layout=Rows(), on_cuda=False, fused=False)
    said = reckon(run, batch).step.operations
    # Four rows of as many tokens as the longest, 64 wide, in two layers; seven linears each, four of 64 x 64 and three
    # of 64 x 128; adapters of rank 8 on all of them; every row sees itself whole, under a mask.
    lengths = [len(p["input_ids"]) for p in batch.prompts]
    sides = [(len(c), len(r)) for c, r in zip(batch.chosen, batch.rejected, strict=True)]
    size = max(length + max(side) for length, side in zip(lengths, sides, strict=True))
    tokens, scored = 4 * size, sum(map(sum, sides))
    linears = 2 * tokens * (4 * 64 * 64 + 3 * 64 * 128)
    adapters = 2 * tokens * 8 * (4 * (64 + 64) + 3 * (64 + 128))
    attention = 2 * 2 * 4 * size * size * 64  # queries by keys, weights by values
    head = 2 * scored * 64 * config.text_config.vocab_size
    # Two images of four patches and a token for the whole, through two layers, and the patches through the projector.
    patches, seen = 2 * 4, 2 * 5
    tower = 2 * 2 * (seen * (4 * 64 * 64 + 2 * 64 * 128) + 2 * seen * 5 * 64)
    assert said["encoder"] == 2 * patches * 3 * 14 * 14 * 64 + tower + 2 * patches * 2 * 64 * 64
    assert said["reference"] == pytest.approx(2 * (linears + attention) + head, rel=0.005)
    # the head's product with the gradient is part of its forward pass
    assert said["policy"] == pytest.approx(2 * (linears + adapters + attention) + 2 * head, rel=0.005)
    # Gradients of adapters' factors and of what they are given; frozen weights have none, and embeddings want none, so
    # nothing goes back through the first three linears. Attention: its weights again, and four products of gradients.
    first = 3 * 2 * tokens * (64 * 64 + 8 * 64)
    assert said["backward"] == pytest.approx(2 * (linears + 2 * adapters + 5 / 2 * attention) - first, rel=0.005)


def test_a_prompt_counts_once_for_each_of_its_branches_where_cuda_gathers_its_keys(folder, pairs):
    rows, put_together = pairs
    batch = put_together(rows)
    run = Run(config=AutoConfig.from_pretrained(folder), lora=RANK, layout=Tree(), dtype="bfloat16")
    there, here = (reckon(replace(run, on_cuda=on), batch) for on in (True, False))
    # one copy more of keys and values, of two bytes a number, in both layers
    prompts = sum(len(prompt["input_ids"]) for prompt in batch.prompts)
    assert there.step.kept - here.step.kept == 2 * (2 * 2 * 64 * prompts)


def test_a_device_is_calibrated_by_real_steps(folder, pairs):
    rows, put_together = pairs
    run = Run(config=AutoConfig.from_pretrained(folder), lora=RANK, layout=Tree(), on_cuda=False)
    speed = calibrate(run, put_together(rows), torch.device("cpu"), steps=1)
    assert speed.operations > 0 and speed.source.startswith("1 real steps of 2 layers")
