"""Two ranks that share the weights of one model answer questions of their own: the second rank, and what both do."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from dpo.adapters import spread
from lightning.pytorch.strategies import FSDPStrategy
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from vlm.asking import IMAGES

from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import LoRA
from synthalign.modules import DPOModule
from synthalign.types import Reply
from synthalign.vlm import Chat, load_vlm, reply
from synthalign.vlm.families import decoder_of


@contextmanager
def rank_of_two(rank: int, store: Path) -> Iterator[None]:
    """Be one of two ranks meanwhile."""
    distributed.init_process_group(
        "gloo",
        store=distributed.FileStore(str(store), 2),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def model_of(folder: Path, stop: int | None, *, adapted: bool) -> Any:
    """Load the model, with an adapter that does something if asked; whose replies end at a token."""
    network = load_vlm(str(folder))
    network.generation_config.eos_token_id = stop
    return spread(LoRA(r=4, alpha=8)(network.requires_grad_(False))).eval() if adapted else network


def sharded(network: Any) -> Any:
    """Spread the weights: each layer by itself, the rest with the whole, PEFT's wrapper included."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in decoder_of(network).layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def under_fsdp(network: Any, folder: Path) -> DPOModule:
    """Spread the weights by flattening them, as Lightning's FSDPStrategy has the module in training do."""
    module = DPOModule(policy=str(folder), loss=DPO(), answer_batch_size=2)
    module.network, strategy = network, FSDPStrategy()
    strategy.model = FullyShardedDataParallel(
        module,
        auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}),
        use_orig_params=True,
        device_id=torch.device("cpu"),
    )
    module._trainer = SimpleNamespace(strategy=strategy)
    return module


def shared_answers(name: str, folder: Path, stop: int, rows: list[tuple[int, str]]) -> list[Reply]:
    """Answer this rank's questions with one of the ways of sharing the weights."""
    network = model_of(folder, stop, adapted=name != "bare")
    if name != "fsdp":
        return answers(sharded(network), Chat(model=str(folder)), rows, synced=True)
    images, questions = [IMAGES[image] for image, _ in rows], [question for _, question in rows]
    with torch.no_grad():
        return under_fsdp(network, folder).answer(images, questions, max_new_tokens=12)


def answers(network: Any, chat: Chat, rows: list[tuple[int, str]], *, synced: bool) -> list[Reply]:
    """Answer questions about numbered images."""
    images, questions = [IMAGES[image] for image, _ in rows], [question for _, question in rows]
    return reply(network, chat, images, questions, max_new_tokens=12, batch_size=2, synced=synced)


def main() -> None:
    """Be the second rank."""
    torch.set_num_threads(1)
    asked = json.loads(sys.stdin.readline())
    folder, store, said = Path(asked["folder"]), Path(asked["store"]), Path(asked["said"])
    found = {}
    with rank_of_two(1, store):
        for name, (stop, rows) in asked["rows"].items():
            found[name] = shared_answers(name, folder, stop, [(image, question) for image, question in rows])
    said.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
