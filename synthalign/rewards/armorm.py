"""ArmoRM: a Llama that rates a response in nineteen ways, and a gate that reads the question to weigh them.

Shapes: n conversations, T tokens of the longest, D width of the Llama, K ratings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import linear
from torch.nn.utils.rnn import pad_sequence

from synthalign.checkpoints import read_named
from synthalign.rewards.conversations import chat_tokenizer, check_format, render, score_distinct
from synthalign.weights import DType, Quantization, check_folder, free_cuda, load_network, resolve_device

TEMPERATURE = 10.0
"""Divides the gate's logits."""

NUM_GATE_LAYERS = 4


class Heads(NamedTuple):
    """What stands on the Llama, in float32."""

    regression: Tensor  # (K, D)
    transform: Tensor  # (K, K)
    gate: list[tuple[Tensor, Tensor]]  # weight and bias of each layer
    gate_scale: Tensor  # (1,)


@dataclass(frozen=True, kw_only=True)
class ArmoRMReward:
    r"""Scores [user: question, assistant: response] as ArmoRM does: a ResponseReward.

    Source: Wang et al. 2024 (arXiv 2406.12845); the model is RLHFlow/ArmoRM-Llama3-8B-v0.1. It never sees the image.
    Given the prompt the image was drawn from, which describes it, it can nevertheless judge faithfulness: set
    ``question_format`` to ``"{prompt}\n{question}"``.

    Args:
        model: Folder or hub id of the model.
        revision: Commit, tag or branch on the hub.
        question_format: The user's turn; {question} and {prompt} (what the image was drawn from) are filled in.
        answer_ids: Tokens between a question and its answer: the end of the user's turn and the assistant's header. The
            gate looks at the first of them; Llama 3's by default.
        dtype: Type of the Llama's weights; auto: as they were saved. What stands on it is computed in float32.
        quantization: Keep the Llama's matrices in 4 bits (nf4) or 8 (int8).
        device: Where to run; auto: the first CUDA device, or the CPU.
        batch_size: Conversations scored at once.
    """

    model: str = "RLHFlow/ArmoRM-Llama3-8B-v0.1"
    revision: str | None = None
    question_format: str = "{question}"
    answer_ids: list[int] = field(default_factory=lambda: [128009, 128006, 78191, 128007, 271])
    dtype: DType = "bfloat16"
    quantization: Quantization | None = None
    device: str = "auto"
    batch_size: int = 8

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant, and a folder that is not there."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")
        if not self.answer_ids:
            raise ValueError("answer_ids must not be empty: the gate looks at the first of them")
        check_folder(self.model)
        check_format("question_format", self.question_format, ["question"], ["prompt"])

    @cached_property
    def network(self) -> Any:  # noqa: ANN401
        """The loaded Llama, in eval mode."""
        from transformers import LlamaModel

        return load_network(
            LlamaModel,
            self.model,
            revision=self.revision,
            dtype=self.dtype,
            quantization=self.quantization,
            device=resolve_device(self.device),
        )

    @cached_property
    def heads(self) -> Heads:
        """What stands on the Llama."""
        layers = [f"gating.layers.{n}.{kind}" for n in range(NUM_GATE_LAYERS) for kind in ("weight", "bias")]
        names = ["regression_layer.weight", "reward_transform_matrix", "gating.logit_scale", *layers]
        read = read_named(self.model, names, revision=self.revision)
        regression, transform, gate_scale, *gate = (read[name].float().to(self.network.device) for name in names)
        return Heads(regression, transform, list(zip(gate[::2], gate[1::2], strict=True)), gate_scale)

    @cached_property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """The loaded tokenizer."""
        return chat_tokenizer(self.model, self.revision)

    def score(
        self, prompts: Sequence[str], images: Sequence[Image], questions: Sequence[str], responses: Sequence[str]
    ) -> Tensor:
        """Return n scores, shape (n,), float32 on the CPU; higher is better. Equal conversations are scored once.

        A conversation that is too long for the model loses its end.

        Raises:
            ValueError: A conversation has no place for the gate to look at, perhaps because its question is too long.
        """
        texts = [self.render(*row) for row in zip(prompts, questions, responses, strict=True)]
        return score_distinct(texts, self.batch_size, self._score, type(self).__name__)

    def render(self, prompt: str, question: str, response: str) -> str:
        """Put a question and its response into the model's template."""
        user = self.question_format.format(prompt=prompt, question=question)
        return render(self.tokenizer, user, response)

    def _score(self, texts: Sequence[str]) -> list[float]:
        response, question = self.states(texts)
        return (rate(response, self.heads) * weigh(question, self.heads)).sum(-1).tolist()

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return what the Llama makes of rendered conversations: at their last tokens, where their questions end.

        Both are (n, D), in float32.
        """
        network = self.network
        longest = network.config.max_position_embeddings
        # The template renders every special token itself.
        rows = self.tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=longest).input_ids
        ends = torch.tensor([self._end_of_question(row, text) for row, text in zip(rows, texts, strict=True)])
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # what is masked may be anything
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        hidden = network(
            input_ids=ids.to(network.device), attention_mask=mask.to(network.device), use_cache=False
        ).last_hidden_state
        each, last = torch.arange(len(rows)), mask.sum(-1) - 1
        return hidden[each, last].float(), hidden[each, ends].float()

    def _end_of_question(self, row: Sequence[int], text: str) -> int:
        """Return where the last ``answer_ids`` begin."""
        wanted = list(self.answer_ids)
        for start in range(len(row) - len(wanted), -1, -1):
            if list(row[start : start + len(wanted)]) == wanted:
                return start
        start_of_text = text if len(text) <= 200 else f"{text[:200]}…"
        raise ValueError(
            f"answer_ids {wanted} are not in the conversation {start_of_text!r} as {self.model!r} encodes it"
        )

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        self.__dict__.pop("network", None)
        self.__dict__.pop("heads", None)
        free_cuda()


def rate(response: Tensor, heads: Heads) -> Tensor:
    """Return a response's ratings, (n, K), of the states at the conversations' last tokens, (n, D)."""
    return linear(response, heads.regression)


def weigh(question: Tensor, heads: Heads) -> Tensor:
    """Return what each rating counts, (n, K), of the states where the questions end, (n, D)."""
    *hidden, last = heads.gate
    for weight, bias in hidden:
        question = linear(question, weight, bias).relu()
    gate = (linear(question, *last) / TEMPERATURE).softmax(-1) * heads.gate_scale
    return gate @ heads.transform.T
