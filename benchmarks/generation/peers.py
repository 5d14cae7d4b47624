"""What others do, in Hugging Face's own calls: from images and texts to texts, as all contenders here.

N rows, Q questions, G images. Greedily, samples of a question are one and the same, and `generate` is asked once.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from synthalign.vlm import KeyedSampler

from .scene import Scene, prompts


def one_at_a_time(scene: Scene, *, greedy: bool = False) -> list[str]:
    """Answer one image, one question, one sample after another, as the reference does."""
    if greedy and scene.num_samples > 1:
        return _repeated(one_at_a_time(scene.asked_once, greedy=True), scene.num_samples)
    texts = []
    for row in range(len(scene.questions)):
        texts += _generate(scene.of(slice(row, row + 1)), greedy=greedy)
    return texts


def several_at_once(scene: Scene, *, greedy: bool = False) -> list[str]:
    """Answer one question after another, its samples by `num_return_sequences`."""
    texts = []
    for row in range(0, len(scene.questions), scene.num_samples):
        texts += _generate(scene.of(slice(row, row + 1)), num_samples=scene.num_samples, greedy=greedy)
    return texts


def all_at_once(scene: Scene, *, greedy: bool = False) -> list[str]:
    """Answer all questions in one batch, padded on the left, their samples by `num_return_sequences`."""
    return _generate(scene.asked_once, num_samples=scene.num_samples, greedy=greedy)


@torch.no_grad()
def prefix_copied(scene: Scene, *, greedy: bool = False, keyed: bool = False) -> list[str]:
    """Answer all in one batch: each image's prefix once, its cache copied for each question, then for each sample.

    Args:
        scene: What is asked.
        greedy: Take the likeliest token.
        keyed: Draw with our sampler instead of `torch.multinomial`, which `generate` draws with.
    """
    network, once = scene.network, scene.asked_once
    encoded = once.inputs()
    prefix, suffixes = prompts(encoded)
    firsts = [row for row, image in enumerate(once.images) if image not in once.images[:row]]
    each, device = len(suffixes) // len(firsts), network.device

    cache = DynamicCache(config=network.config.get_text_config())
    network(
        input_ids=torch.tensor([prefix] * len(firsts), device=device),
        pixel_values=encoded["pixel_values"][firsts],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_repeat_interleave(each)
    longest = max(map(len, suffixes))
    tokens = encoded["input_ids"][:, -longest:]  # shorter ones begin with tokens of the prefix, which the mask hides
    before = [longest - len(suffix) for suffix in suffixes]
    own = torch.arange(longest, device=device) >= torch.tensor(before, device=device)[:, None]
    mask = torch.cat([own.new_ones(len(suffixes), len(prefix)), own], 1).long()
    places = (mask.cumsum(1) - 1)[:, len(prefix) :]

    sampler = KeyedSampler(scene.seeds)
    torch.manual_seed(scene.seeds[0])
    said: list[Tensor] = []
    while len(said) < scene.new_tokens:
        logits = network(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if not said:
            cache.batch_repeat_interleave(scene.num_samples)
            logits, mask, places = (one.repeat_interleave(scene.num_samples, 0) for one in (logits, mask, places))
        if greedy:
            tokens = logits.argmax(-1, keepdim=True)
        elif keyed:
            tokens = sampler(tokens, logits).argmax(-1, keepdim=True)
        else:
            tokens = torch.multinomial(logits.float().softmax(-1), 1)
        said.append(tokens)
        mask, places = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), places[:, -1:] + 1
    return decoded(scene, torch.cat(said, 1))


def _generate(scene: Scene, *, num_samples: int = 1, greedy: bool) -> list[str]:
    """Answer rows by `generate`; unless it is told otherwise it draws among the 50 likeliest tokens only."""
    inputs = scene.inputs()
    torch.manual_seed(scene.seeds[0])
    how: dict[str, Any] = {"do_sample": False} if greedy else {"do_sample": True, "num_return_sequences": num_samples}
    if not greedy:
        how |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    out = scene.network.generate(**inputs, max_new_tokens=scene.new_tokens, **how)
    texts = decoded(scene, out[:, inputs["input_ids"].shape[1] :])
    return _repeated(texts, num_samples) if greedy else texts


def _repeated(texts: list[str], times: int) -> list[str]:
    return [text for text in texts for _ in range(times)]


def decoded(scene: Scene, tokens: Tensor) -> list[str]:
    """Decode rows of tokens."""
    texts = scene.chat.processor.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]
