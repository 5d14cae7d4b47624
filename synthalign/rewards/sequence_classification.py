"""Response rewards that transformers loads as sequence classification with one label."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from synthalign.rewards.conversations import chat_tokenizer, check_format, render, score_distinct
from synthalign.weights import DType, Quantization, check_folder, free_cuda, load_network, resolve_device


@dataclass(frozen=True, kw_only=True)
class SequenceClassificationReward:
    r"""Scores [user: question, assistant: response] as the model's one label does: a ResponseReward.

    Such a model never sees the image. Given the prompt the image was drawn from, which describes it, it can
    nevertheless judge faithfulness: set ``question_format`` to ``"{prompt}\n{question}"``.

    Args:
        model: Folder or hub id of the model; its tokenizer needs a chat template.
        revision: Commit, tag or branch on the hub.
        question_format: The user's turn; {question} and {prompt} (what the image was drawn from) are filled in.
        max_length: Longest conversation, tokens; a longer one loses its end. The model's own limit by default.
        dtype: Type of the weights; auto: as they were saved.
        quantization: Keep the matrices of the model's layers in 4 bits (nf4) or 8 (int8).
        device: Where to run; auto: the first CUDA device, or the CPU.
        batch_size: Conversations scored at once.
    """

    model: str
    revision: str | None = None
    question_format: str = "{question}"
    max_length: int | None = None
    dtype: DType = "auto"
    quantization: Quantization | None = None
    device: str = "auto"
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant, and a folder that is not there."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")
        check_folder(self.model)
        check_format("question_format", self.question_format, ["question"], ["prompt"])

    @cached_property
    def network(self) -> Any:  # noqa: ANN401
        """The loaded model, in eval mode."""
        from transformers import AutoModelForSequenceClassification

        network = load_network(
            AutoModelForSequenceClassification,
            self.model,
            revision=self.revision,
            dtype=self.dtype,
            quantization=self.quantization,
            device=resolve_device(self.device),
        )
        if network.config.num_labels != 1:
            raise ValueError(f"model {self.model!r} has {network.config.num_labels} labels; a reward has one")
        return network

    @cached_property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """The loaded tokenizer."""
        return chat_tokenizer(self.model, self.revision)

    def score(
        self, prompts: Sequence[str], images: Sequence[Image], questions: Sequence[str], responses: Sequence[str]
    ) -> Tensor:
        """Return n scores, shape (n,), float32 on the CPU; higher is better. Equal conversations are scored once."""
        texts = [self._render(*row) for row in zip(prompts, questions, responses, strict=True)]
        return score_distinct(texts, self.batch_size, self._score, type(self).__name__)

    def _render(self, prompt: str, question: str, response: str) -> str:
        user = self.question_format.format(prompt=prompt, question=question)
        return render(self.tokenizer, user, response)

    @torch.no_grad()
    def _score(self, texts: Sequence[str]) -> list[float]:
        tokenizer, network = self.tokenizer, self.network
        config = network.config.get_text_config()
        bos = tokenizer.bos_token
        rows = tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_length or config.max_position_embeddings,
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        ).input_ids
        # The model reads its score at the last token that is not its padding. One without padding reads it at the last
        # token, whatever that is, and takes no batch: a token that no row has, as padding, lets it.
        own = config.pad_token_id
        pad = min(set(range(config.vocab_size)).difference(*rows)) if own is None else own
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        config.pad_token_id = pad
        try:
            logits = network(input_ids=ids.to(network.device), attention_mask=mask.to(network.device)).logits
        finally:
            config.pad_token_id = own
        return logits[:, 0].float().tolist()

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        self.__dict__.pop("network", None)
        free_cuda()
