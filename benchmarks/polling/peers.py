"""What others do with many short questions about one image, in Hugging Face's own calls, greedily.

N rows, L tokens of the prefix that questions about an image have in common.
"""

from copy import deepcopy

import torch
from generation import peers  # type: ignore[import-not-found]
from generation.scene import Scene, prompts  # type: ignore[import-not-found]
from torch import Tensor
from transformers import DynamicCache

ROWS = 16
"""Rows of a batch of those that pad."""


def one_at_a_time(scene: Scene, *, greedy: bool = True) -> list[str]:
    """Answer one question after another, its image processed and encoded each time: the loops that are public."""
    return list(peers.one_at_a_time(scene, greedy=greedy))


def padded(scene: Scene, *, greedy: bool = True) -> list[str]:
    """Answer in batches, padded on the left, with an image for each row."""
    batches = (scene.of(slice(row, row + ROWS)) for row in range(0, len(scene.questions), ROWS))
    return [text for batch in batches for text in peers.all_at_once(batch, greedy=greedy)]


def features_once(scene: Scene, *, greedy: bool = True) -> list[str]:
    """Answer one question after another; each image is encoded once, its features put among the words' embeddings."""
    network, known, texts = scene.network, dict[int, Tensor](), []
    with torch.no_grad(), scene.chat.each_image_once():
        for row, image in enumerate(scene.images):
            inputs = scene.of(slice(row, row + 1)).inputs()
            if id(image) not in known:
                encoded = network.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
                known[id(image)] = torch.cat(list(encoded))
            words = network.get_input_embeddings()(inputs["input_ids"])
            places = (inputs["input_ids"] == network.config.image_token_id).unsqueeze(-1)
            out = network.generate(
                inputs_embeds=words.masked_scatter(places, known[id(image)].to(words.dtype)),
                attention_mask=inputs["attention_mask"],
                max_new_tokens=scene.new_tokens,
                do_sample=False,
            )
            texts += peers.decoded(scene, out)
    return texts


def cache_for_each(scene: Scene, *, greedy: bool = True) -> list[str]:
    """Answer one question after another by `generate`, each upon a copy of the cache of its image's prefix."""
    network, caches, texts = scene.network, dict[int, DynamicCache](), []
    with scene.chat.each_image_once():
        encoded = scene.inputs()
    shared = len(prompts(encoded).prefix)
    with torch.no_grad():
        for row, image in enumerate(scene.images):
            ids = encoded["input_ids"][row][encoded["attention_mask"][row].bool()][None]
            if id(image) not in caches:
                cache = DynamicCache(config=network.config.get_text_config())
                network(
                    input_ids=ids[:, :shared],
                    pixel_values=encoded["pixel_values"][row : row + 1],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                caches[id(image)] = cache
            out = network.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=deepcopy(caches[id(image)]),
                max_new_tokens=scene.new_tokens,
                do_sample=False,
            )
            texts += peers.decoded(scene, out[:, ids.shape[1] :])
    return texts


def prefix_copied(scene: Scene, *, greedy: bool = True) -> list[str]:
    """Answer all in one batch: each image's prefix once, its cache copied to every question."""
    return list(peers.prefix_copied(scene, greedy=greedy))
