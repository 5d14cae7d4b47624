"""Batches filled to a budget hold unequal numbers of pairs; a step of two processes is the mean over all its pairs."""

import json
from functools import partial

import pytest
import torch
from dpo.drawn_pairs import write_set
from dpo.launched import fit
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from synthalign.datamodules import SyntheticPreferenceDataModule
from synthalign.dpo.batch import collate
from synthalign.dpo.policy import save_adapter
from synthalign.vlm import Chat

CONFIG = """
seed_everything: 0
trainer:
  default_root_dir: run
  accelerator: cpu
  strategy: ddp
  devices: 2
  max_epochs: 2
  accumulate_grad_batches: 2
  gradient_clip_val: 0.05
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [{class_path: SaveAdapter}, {class_path: dpo.witness.Witness}]
model:
  class_path: DPOModule
  init_args:
    policy: POLICY
    dtype: float64
    lora: {r: 4, alpha: 8}
    loss: {class_path: synthalign.dpo.losses.DPO, init_args: {beta: 0.5}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
data:
  class_path: SyntheticPreferenceDataModule
  init_args: {pairs: set/pairs.json, max_tokens: 170}
"""

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_llava):
    """Train in two processes, and give the folder."""
    folder = tmp_path_factory.mktemp("uneven")
    write_set(folder / "set")
    (folder / "config.yaml").write_text(CONFIG.replace("POLICY", str(tiny_llava)), encoding="utf-8")
    fit(folder)
    return folder


def test_the_adapter_is_that_of_one_process_with_each_step_as_one_batch(
    two, tiny_llava, make_module, make_trainer, tmp_path
):
    ranks = [json.loads((two / f"rank-{rank}.json").read_text(encoding="utf-8"))["steps"] for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1])
    sizes = {len(batch) for rank in ranks for batch in rank}
    assert len(sizes) > 1
    epoch = len(ranks[0]) // 2
    steps = []
    for first in (0, epoch):
        for start in range(first, first + epoch, 2):  # two batches of each rank are a step, or what is left of an epoch
            end = min(start + 2, first + epoch)
            steps.append([row_id for rank in ranks for batch in rank[start:end] for row_id in batch])

    chat = Chat(model=str(tiny_llava))
    data = SyntheticPreferenceDataModule(pairs=str(two / "set" / "pairs.json"), chat=chat)
    data.setup("fit")
    place = {data.train_set[number].id: number for number in range(len(data.train_set))}
    batches = [[place[row_id] for row_id in step] for step in steps]
    loader = DataLoader(data.train_set, batch_sampler=batches, collate_fn=partial(collate, chat=chat))
    module = make_module(optimizer=partial(torch.optim.SGD, lr=0.1))
    make_trainer(gradient_clip_val=0.05).fit(module, loader)
    save_adapter(module.network, tmp_path / "adapter")

    alone, together = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "adapter", two / "run/fit/adapter")
    )
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-6, atol=1e-9, msg=name)
