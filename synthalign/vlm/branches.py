"""Prompts that share their beginnings, put before the model: each stem once, then each question behind its stem.

N questions or rows, V tokens of the vocabulary, A axes of a position (1, or 3 for rotary embeddings of Qwen-VL's kind).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from synthalign.vlm.attention import attending
from synthalign.vlm.cache import Place, SharedCache, stems_of
from synthalign.vlm.chat import Chat
from synthalign.vlm.families import base_of, decoder_of
from synthalign.vlm.features import EncodedImage, EncodedImages, encode_images, joins
from synthalign.vlm.kept import Kept, KeptFeatures, content, numbers_of, outline
from synthalign.vlm.plain import to_model
from synthalign.vlm.prompts import Asked, Prompt, encode_prompts


class Started(NamedTuple):
    """N prompts that the model has read."""

    cache: SharedCache
    logits: Tensor  # (N, V) of the first token behind each, float32
    positions: Tensor  # (A, N) of that token


class Branches:
    """Reads prompts, and keeps what the next ones may share with them.

    Args:
        network: The model, in eval mode.
        chat: Its chat.
        images: n images.
        questions: n questions about them.
        kept: Features of images seen before; looked up, and added to.
    """

    def __init__(
        self,
        network: Any,  # noqa: ANN401 - any Hugging Face model, PEFT's wrapper included
        chat: Chat,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        kept: KeptFeatures | None = None,
    ) -> None:
        self.network, self.chat = network, chat
        self.images, self.questions = images, questions
        self.kept, self._numbers = kept, numbers_of(network)
        self.about: dict[int, dict[str, None]] = {}  # by image object: the distinct questions about it
        for image, question in zip(images, questions, strict=True):
            self.about.setdefault(id(image), {})[question] = None
        self._asked: dict[int, Asked] = {}
        self._contents: dict[int, str] = {}  # of the images asked about, where features are kept
        self._encoded: dict[int, EncodedImage] = {}
        self._stems: dict[tuple[int, tuple[int, ...]], tuple[Place, Tensor]] = {}

    def order(self) -> list[int]:
        """Return the rows with those about one image side by side, of these those of one question; short ones first."""
        first = {id(image): row for row, image in reversed(list(enumerate(self.images)))}
        longest = {key: max(len(question) for question in questions) for key, questions in self.about.items()}

        def key(row: int) -> tuple[int, int, int, str, int]:
            image, question = id(self.images[row]), self.questions[row]
            return longest[image], first[image], len(question), question, row

        return sorted(range(len(self.images)), key=key)

    def prompts(self, rows: Sequence[int]) -> list[Prompt]:
        """Return the prompts of some rows; what is kept of images that are not among theirs is dropped."""
        wanted = {id(self.images[row]): self.images[row] for row in rows}
        self._asked = {key: one for key, one in self._asked.items() if key in wanted}
        for key, image in wanted.items():
            if key not in self._asked:
                seen = self._seen(image)
                questions, processed = list(self.about[key]), None if seen is None else seen.outline
                self._asked[key] = encode_prompts(self.network, self.chat, image, questions, processed)
                if seen is not None:
                    self._encoded[key] = seen.encoded.to(self.network.device)
        return [self._asked[id(self.images[row])].prompts[self.questions[row]] for row in rows]

    def _seen(self, image: Image.Image) -> Kept | None:
        """Return what is kept of an image from earlier calls."""
        if self.kept is None:
            return None
        self._contents[id(image)] = content(image)
        return self.kept.get(self._contents[id(image)], self._numbers)

    def start(self, rows: Sequence[int]) -> Started:
        """Read the prompts of N rows, each distinct one once."""
        prompts = self.prompts(rows)
        keys = [(id(self.images[row]), prompt.stem_key) for row, prompt in zip(rows, prompts, strict=True)]
        self._read_stems(keys, prompts)
        asked = [(id(self.images[row]), self.questions[row]) for row in rows]
        first = {one: row for row, one in reversed(list(enumerate(asked)))}
        once = sorted(first.values())
        longer = [row for row in once if len(prompts[row].ids) > prompts[row].stem]
        places, of_stems = zip(*(self._stems[key] for key in keys), strict=True)
        logits = {row: of_stems[row] for row in once}
        cache = SharedCache(places)
        if longer:
            cache = SharedCache([places[row] for row in longer])
            read = self._read_on(cache, [prompts[row] for row in longer])
            logits |= dict(zip(longer, read, strict=True))
            at = {row: number for number, row in enumerate(longer)}
            cache = cache.take([at.get(first[one], 0) for one in asked], places)
            for row, one in enumerate(asked):
                if first[one] not in at:  # nothing stands behind its stem
                    cache.present[row] = False
        positions = torch.stack([prompt.positions[:, -1] for prompt in prompts], 1)
        return Started(
            cache,
            torch.stack([logits[first[one]] for one in asked]),
            positions.to(self.network.device),
        )

    def _read_on(self, cache: SharedCache, prompts: Sequence[Prompt]) -> Tensor:
        """Read what stands behind the stems, padded on the left; return the last logits, (N, V)."""
        rest = [prompt.ids[prompt.stem :].flip(0) for prompt in prompts]
        ids = pad_sequence(rest, batch_first=True).flip(1)
        present = pad_sequence([torch.ones_like(one) for one in rest], batch_first=True).flip(1).bool()
        places = [prompt.positions[:, prompt.stem : -1].flip(1).T for prompt in prompts]
        positions = pad_sequence(places, batch_first=True).flip(1).permute(2, 0, 1)
        return forward(self.network, cache, ids, positions, present)

    def _read_stems(self, keys: Sequence[tuple[int, tuple[int, ...]]], prompts: Sequence[Prompt]) -> None:
        """Read the stems that are not known; those of one length together."""
        wanted = dict(zip(keys, prompts, strict=True))
        kept = {key: known for key, known in self._stems.items() if key in wanted}
        self._stems = {key: (place.alone(), logits) for key, (place, logits) in kept.items()}
        self._encoded = {key: one for key, one in self._encoded.items() if key in {image for image, _ in wanted}}
        together: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        for key, prompt in wanted.items():
            if key not in self._stems:
                together.setdefault(prompt.stem, []).append(key)
        self._encode([image for some in together.values() for image, _ in some])
        for length, some in together.items():
            tokens = {
                name: torch.stack([wanted[key].tokens[name][:length] for key in some])
                for name in wanted[some[0]].tokens
            }
            self._read_together(some, tokens)

    def _read_together(self, keys: list[tuple[int, tuple[int, ...]]], tokens: dict[str, Tensor]) -> None:
        from transformers import DynamicCache

        features = EncodedImages([self._encoded[image] for image, _ in keys], joins(base_of(self.network)))
        pixels = [self._asked[image].pixels for image, _ in keys]
        if "image_grid_thw" in pixels[0]:  # Qwen-VL counts its positions by them
            tokens = tokens | {"image_grid_thw": torch.cat([one["image_grid_thw"] for one in pixels])}
        output = self.network(
            **to_model(self.network, tokens | {"attention_mask": torch.ones_like(tokens["input_ids"])}),
            **features.inputs(range(len(keys))),
            past_key_values=DynamicCache(),  # of all layers the whole, be some of them windows
            use_cache=True,
            logits_to_keep=1,
        )
        stems = stems_of(output.past_key_values)
        for number, (key, logits) in enumerate(zip(keys, output.logits[:, -1].float(), strict=True)):
            self._stems[key] = Place(stems, number), logits

    def _encode(self, images: Sequence[int]) -> None:
        """Run tower and projector on the images that are not encoded yet; those that fit into a tensor together."""
        together: dict[Any, list[int]] = {}
        for image in dict.fromkeys(images):
            if image not in self._encoded:
                shape = tuple((key, value.shape[1:]) for key, value in self._asked[image].pixels.items())
                together.setdefault(shape, []).append(image)
        for some in together.values():
            pixels = [self._asked[image].pixels for image in some]
            joined = {key: torch.cat([one[key] for one in pixels]) for key in pixels[0]}
            places = [self._asked[image].places for image in some]
            encoded = encode_images(self.network, to_model(self.network, joined), places)
            self._encoded |= dict(zip(some, encoded.images, strict=True))
            if self.kept is not None:
                for image, one in zip(some, encoded.images, strict=True):
                    self.kept.keep(self._contents[image], self._numbers, one, self._outline(self._asked[image]))

    def _outline(self, asked: Asked) -> Any:  # noqa: ANN401
        """Return what stands for an image when prompts about it are encoded again; None where only itself does."""
        if asked.processed is None:
            return None
        drawn = type(asked.processed)({key: outline(value) for key, value in asked.processed.items()})
        question, prompt = next(iter(asked.prompts.items()))
        again = encode_prompts(self.network, self.chat, asked.image, [question], drawn).prompts[question]
        same = again.tokens.keys() == prompt.tokens.keys() and all(
            torch.equal(again.tokens[key], value) for key, value in prompt.tokens.items()
        )
        return drawn if same and torch.equal(again.positions, prompt.positions) else None


def forward(network: Any, cache: SharedCache, ids: Tensor, positions: Tensor, present: Tensor) -> Tensor:  # noqa: ANN401
    """Read Q more tokens of each of N rows.

    Args:
        network: The model.
        cache: What the rows see, which then holds these tokens as well.
        ids: (N, Q).
        positions: (A, N, Q).
        present: (N, Q) on the CPU, false for padding.

    Returns:
        The logits behind the last token, (N, V), float32.
    """
    cache.extend(present)
    positions = positions.to(network.device)
    with attending(decoder_of(network)):
        output = network(
            input_ids=ids.to(network.device),
            position_ids=positions[0] if len(positions) == 1 else positions,
            use_cache=False,
            logits_to_keep=1,
            shared=cache,
        )
    return output.logits[:, -1].float()
