"""A local language model without images: it completes prompts, as writers of prompts and judges do."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from synthalign.batching import in_batches
from synthalign.types import Reply
from synthalign.vlm.chat import adds_special, prepare, render
from synthalign.vlm.plain import GREEDY, generate, to_model
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

    def next_logps(self, prompts: Sequence[str], begun: Sequence[str], choices: Sequence[str]) -> Tensor:
        """Return how likely each choice comes next, where a reply to each prompt has begun.

        A choice is put behind the text before that is cut into tokens, so that a blank between them falls to whichever
        side the tokenizer wants; of what follows, all choices must differ in exactly one token.

        Args:
            prompts: n prompts.
            begun: How the reply to each begins.
            choices: k texts that may come next, such as `` 0`` to `` 6``.

        Returns:
            Their log-probabilities, shape (n, k), float32, nats: among all tokens, so each row sums up to less than 1.

        Raises:
            ValueError: The tokenizer does not tell the choices apart by one token.
            FloatingPointError: The model's logits are no finite numbers.
        """
        rows = [self._forked(self.prompt(one) + start, choices) for one, start in zip(prompts, begun, strict=True)]
        order = sorted(range(len(rows)), key=lambda row: (len(rows[row][0]), row))

        def work(numbers: Sequence[int]) -> list[Tensor]:
            return self._forks([rows[number] for number in numbers])

        done = dict(zip(order, in_batches(order, self.batch_size, work, f"LLM {self.model}"), strict=True))
        return torch.stack([done[row] for row in range(len(rows))]) if rows else torch.empty(0, len(choices))

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

    def _forked(self, text: str, choices: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the tokens up to where the choices part, and the one token of each."""
        special = adds_special(self.tokenizer, text)
        whole = [self.tokenizer(text + choice, add_special_tokens=special).input_ids for choice in choices]
        stem, ends = list(whole[0][:-1]), [ids[-1] for ids in whole]
        if any(list(ids[:-1]) != stem for ids in whole) or len(set(ends)) < len(choices):
            listed = ", ".join(map(repr, choices))
            raise ValueError(f"model {self.model!r} does not tell {listed} apart by one token: take another model")
        return stem, ends

    @torch.no_grad()
    def _forks(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[Tensor]:
        longest = max(len(stem) for stem, _ in rows)
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, (stem, _) in enumerate(rows):
            ids[row, longest - len(stem) :] = torch.tensor(stem)
            mask[row, longest - len(stem) :] = 1
        # By generate, since it knows where each family's positions begin behind padding; raw, before any processor.
        out = self.network.generate(
            **to_model(self.network, {"input_ids": ids, "attention_mask": mask}),
            **GREEDY,
            max_new_tokens=1,
            pad_token_id=self.tokenizer.pad_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logps = out.logits[0].float().log_softmax(-1)
        chosen = logps.gather(-1, torch.tensor([ends for _, ends in rows], device=logps.device))
        if bool(chosen.isnan().any()):
            raise FloatingPointError("the model's logits are no finite numbers: take bfloat16 or float32 as its dtype")
        return list(chosen.cpu())

    def _sampler(self, seeds: Sequence[int]) -> KeyedSampler:
        return KeyedSampler(seeds, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
