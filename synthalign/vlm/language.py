"""A local language model without images: it completes prompts, as a writer of prompts does."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from synthalign.batching import in_batches
from synthalign.types import Reply
from synthalign.vlm.chat import adds_special, prepare, render
from synthalign.vlm.plain import generate, to_model
from synthalign.vlm.sampler import KeyedSampler
from synthalign.weights import DType, Quantization, check_folder, free_cuda, load, load_network, resolve_device


@dataclass(frozen=True, kw_only=True)
class LLM:
    """A local language model that answers prompts.

    Args:
        model: Folder or hub id; any model that transformers loads as causal language model.
        revision: Commit, tag or branch on the hub.
        system_prompt: Put before every conversation.
        chat_template: Jinja template to use instead of the model's own.
        dtype: Type of the weights; auto: as they were saved.
        device: Where to run; auto: the first CUDA device, or the CPU.
        quantization: Keep the layers' weights in 4 bits (nf4) or 8 (int8) by bitsandbytes; null: as they are.
        max_new_tokens: Length limit of a reply, tokens.
        temperature: Of sampling, > 0; used when seeds are given.
        top_k: Sample among the k likeliest tokens; 0 for all.
        top_p: Sample among the likeliest tokens that together reach this probability.
        batch_size: Prompts completed at once.
    """

    model: str
    revision: str | None = None
    system_prompt: str | None = None
    chat_template: str | None = None
    dtype: DType = "auto"
    device: str = "auto"
    quantization: Quantization | None = None
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    batch_size: int = 8

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant, and a folder that is not there."""
        check_folder(self.model)
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        self._sampler([])

    @cached_property
    def tokenizer(self) -> Any:  # noqa: ANN401 - every family has its own class
        """The model's tokenizer, padding on the left: on the right, batched replies are silently wrong."""
        from transformers import AutoTokenizer

        tokenizer = load(AutoTokenizer, self.model, revision=self.revision)
        prepare(tokenizer, tokenizer, self.model, self.chat_template)
        return tokenizer

    @cached_property
    def network(self) -> Any:  # noqa: ANN401
        """The loaded model, in eval mode."""
        from transformers import AutoModelForCausalLM

        return load_network(
            AutoModelForCausalLM,
            self.model,
            revision=self.revision,
            dtype=self.dtype,
            quantization=self.quantization,
            device=resolve_device(self.device),
        )

    def complete(self, prompts: Sequence[str], seeds: Sequence[int] | None = None) -> list[Reply]:
        """Answer each prompt: greedily, or, given one seed per row, by sampling.

        A row's sampling noise is keyed by (its seed, step): it does not depend on the other rows of the call.
        """
        texts = [self.prompt(one) for one in prompts]
        # prompts alike in length waste little on padding
        order = sorted(range(len(prompts)), key=lambda row: (len(texts[row]), row))

        def work(rows: Sequence[int]) -> list[Reply]:
            return self._batch([texts[row] for row in rows], None if seeds is None else [seeds[row] for row in rows])

        replies = dict(zip(order, in_batches(order, self.batch_size, work, f"LLM {self.model}"), strict=True))
        return [replies[row] for row in range(len(prompts))]

    def prompt(self, text: str) -> str:
        """Render the conversation up to where the model begins to reply."""
        messages = [{"role": "user", "content": text}]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return render(self.tokenizer, messages, self.model, add_generation_prompt=True)

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        self.__dict__.pop("network", None)
        free_cuda()

    @torch.no_grad()
    def _batch(self, texts: list[str], seeds: list[int] | None) -> list[Reply]:
        special = adds_special(self.tokenizer, texts[0])
        encoded = self.tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=special)
        inputs = {key: encoded[key] for key in ("input_ids", "attention_mask")}
        said = generate(
            self.network,
            to_model(self.network, inputs),
            [None if seeds is None else self._sampler(seeds)],
            max_new_tokens=self.max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        spoken = self.tokenizer.batch_decode(said.tokens, skip_special_tokens=True)
        return [Reply(text.strip(), cut) for text, cut in zip(spoken, said.truncated, strict=True)]

    def _sampler(self, seeds: Sequence[int]) -> KeyedSampler:
        return KeyedSampler(seeds, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
