"""A model that has replied, or failed to, is as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dpo.adapters import spread
from vlm.asking import IMAGES, QUESTIONS

from synthalign.dpo.policy import LoRA
from synthalign.vlm import Chat, KeptFeatures, KeyedSampler, load_vlm, reply

SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "greedy": dict,
    "kept": lambda: {"kept": KeptFeatures(1.0)},
    "first token": lambda: {"max_new_tokens": 1},
    "sampled": lambda: {"sampler": KeyedSampler(range(8))},
}


def state(network: Any, chat: Chat) -> dict[str, Any]:
    """What training and whoever else asks the model would notice."""
    configs = {name: part.config for name, part in network.named_modules() if hasattr(part, "config")}
    return {
        "configs": {name: config.to_dict() for name, config in configs.items()},
        "attention": {name: config._attn_implementation for name, config in configs.items()},
        "generation": network.generation_config.to_dict(),
        "modes": {name: part.training for name, part in network.named_modules()},
        "trained": {name: one.requires_grad for name, one in network.named_parameters()},
        "gradients": {name: one.grad for name, one in network.named_parameters()},
        "forwards": {name: vars(part).get("forward") for name, part in network.named_modules()},
        "hooks": {
            name: (len(part._forward_hooks), len(part._forward_pre_hooks)) for name, part in network.named_modules()
        },
        "random": torch.get_rng_state().tolist(),
        "tells": torch.is_grad_enabled(),
        "processor": id(chat.processor.image_processor),
        "padding": (chat.tokenizer.padding_side, chat.tokenizer.pad_token_id),
    }


def fresh(folder: Any) -> tuple[Any, Chat]:
    """A policy as it is evaluated, whose caches are off, as checkpointing wants them in training."""
    network = spread(LoRA(r=4)(load_vlm(str(folder)).requires_grad_(False))).eval()
    network.config.text_config.use_cache = False
    chat = Chat(model=str(folder))
    # what transformers itself sets up at a model's first call is not ours to undo
    network.generate(**chat.inputs(IMAGES[:1], QUESTIONS[:1]), do_sample=False, max_new_tokens=2, pad_token_id=0)
    return network, chat


def ask(network: Any, chat: Chat, **settings: Any) -> Any:
    images = [image for image in IMAGES[:2] for _ in range(4)]
    return reply(network, chat, images, QUESTIONS * 2, **({"max_new_tokens": 5, "batch_size": 3} | settings))


@pytest.mark.parametrize("way", SETTINGS)
def test_a_reply_leaves_everything_as_it_was(way, tiny_llava):
    network, chat = fresh(tiny_llava)
    before = state(network, chat)
    ask(network, chat, **SETTINGS[way]())
    assert state(network, chat) == before


@pytest.mark.parametrize("plain", [False, True], ids=["sharing", "plain"])
@pytest.mark.parametrize("call", [1, 2, 7])
def test_a_reply_that_fails_leaves_everything_as_it_was(call, plain, tiny_llava):
    network, chat = fresh(tiny_llava)
    if plain:
        network.generation_config.max_time = 1000.0
    ask(network, chat)  # tried here, where what fails is taken as a reason not to share
    calls: list[int] = []

    def interrupted(*_: Any) -> None:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt

    before = state(network, chat)
    hook = network.get_base_model().model.language_model.layers[1].register_forward_pre_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(network, chat, kept=KeptFeatures(1.0))
    hook.remove()
    assert len(calls) == call
    assert state(network, chat) == before
    expected = ask(network, chat)
    assert ask(network, chat, kept=KeptFeatures(1.0)) == expected
