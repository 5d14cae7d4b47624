"""A vision-language model: load it, put a question into its template, and let it reply.

Responders, the policy, judges and evaluations all go through here, so that one model is asked in one way only.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from synthalign.types import Reply
from synthalign.weights import DType, check_folder, free_cuda, load, load_network, resolve_device


@dataclass(frozen=True, kw_only=True)
class Chat:
    """How a question about an image becomes tokens for one model, and tokens a reply.

    Args:
        model: Folder or hub id of the model whose processor and chat template are used.
        revision: Commit, tag or branch on the hub.
        system_prompt: Put before every conversation, if the template has a place for it.
        chat_template: Jinja template to use instead of the model's own.
    """

    model: str
    revision: str | None = None
    system_prompt: str | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        """Refuse a folder that is not there."""
        check_folder(self.model)

    @cached_property
    def processor(self) -> Any:  # noqa: ANN401 - every family has its own class
        """The model's processor, padding on the left: on the right, batched replies are silently wrong."""
        from transformers import AutoProcessor

        processor = load(AutoProcessor, self.model, revision=self.revision)
        if self.chat_template is not None:
            processor.chat_template = self.chat_template
        if getattr(processor, "chat_template", None) is None:
            raise ValueError(f"model {self.model!r} has no chat template: give one as chat_template")
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:  # whatever pads is masked
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        return processor

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @cached_property
    def max_length(self) -> int:
        """How many tokens the language model has positions for."""
        from transformers import AutoConfig

        config = load(AutoConfig, self.model, revision=self.revision)
        return int(config.get_text_config().max_position_embeddings)

    def prompt(self, question: str) -> str:
        """Render the conversation up to where the model begins to reply; the image is one placeholder."""
        if question not in self._prompts:
            if len(self._prompts) >= REMEMBERED_PROMPTS:
                self._prompts.clear()
            self._prompts[question] = self._render(self._messages(question), add_generation_prompt=True)
        return self._prompts[question]

    def inputs(self, images: Sequence[Image.Image], questions: Sequence[str]) -> dict[str, Tensor]:
        """Encode n prompts for the model: tokens (n, longest), left-padded, and whatever it takes for images."""
        prompts = [self.prompt(question) for question in questions]
        encoded = self.processor(
            images=[[image] for image in images],
            text=prompts,
            padding=True,
            return_tensors="pt",
            add_special_tokens=self._adds_special(prompts[0]),
        )
        return dict(encoded)

    def response_ids(self, question: str, response: str) -> list[int]:
        """Encode a response as the model would have written it after the prompt, the end of its turn included.

        Raises:
            ValueError: The response is empty.
        """
        response = response.strip()
        if not response:
            raise ValueError(f"an empty response to {question!r} has no tokens")
        prompt = self.prompt(question)
        answer = {"role": "assistant", "content": [{"type": "text", "text": response}]}
        whole = self._render([*self._messages(question), answer])
        said = whole[len(prompt) :] if whole.startswith(prompt) else response
        head, found, end = said.rpartition(response)
        # Some templates (LLaVA-1.5's among them) render no end of turn; without one a model never learns to stop.
        said = head + found + (end.strip() or self.tokenizer.eos_token)
        before, after = self._encode(prompt), self._encode(prompt + said)
        if after[: len(before)] == before:
            return after[len(before) :]
        return list(self.tokenizer(said, add_special_tokens=False).input_ids)

    def prompt_length(self, question: str, image_size: tuple[int, int]) -> int:
        """Count the tokens of a prompt with an image of this (width, height), without reading the image."""
        if image_size not in self._image_tokens:
            blank = Image.new("RGB", image_size)
            length = int(self.inputs([blank], [""])["input_ids"].shape[1])
            self._image_tokens[image_size] = length - len(self._encode(self.prompt("")))
        return self._image_tokens[image_size] + len(self._encode(self.prompt(question)))

    @cached_property
    def yes_no_ids(self) -> tuple[list[int], list[int]]:
        """First tokens of "Yes" and "No" replies in either case, where they are tokens of their own."""
        yes, no = ({self.response_ids("", word)[0] for word in words} for words in (("Yes", "yes"), ("No", "no")))
        shared = (yes & no) | {self.tokenizer.unk_token_id}
        return sorted(yes - shared), sorted(no - shared)

    @contextmanager
    def each_image_once(self) -> Iterator[None]:
        """Meanwhile, process an image that comes in several calls of ``inputs``, as the same object, once."""
        real = getattr(self.processor, "image_processor", None)
        if real is None:
            yield
            return
        self.processor.image_processor = _ImageMemory(real)
        try:
            yield
        finally:
            self.processor.image_processor = real

    @cached_property
    def _image_tokens(self) -> dict[tuple[int, int], int]:
        return {}

    @cached_property
    def _prompts(self) -> dict[str, str]:
        return {}

    def _render(self, messages: list[dict[str, Any]], **settings: Any) -> str:  # noqa: ANN401
        from jinja2 import TemplateError

        try:
            return str(self.processor.apply_chat_template(messages, tokenize=False, **settings))
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(f"the chat template of {self.model!r} refuses turns of {roles}: {error}") from error

    def _messages(self, question: str) -> list[dict[str, Any]]:
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        if self.system_prompt is None:
            return [user]
        return [{"role": "system", "content": [{"type": "text", "text": self.system_prompt}]}, user]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=self._adds_special(text)).input_ids)

    def _adds_special(self, text: str) -> bool:
        """Whether the tokenizer has to put the beginning of sequence, which some templates already render."""
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos))


REMEMBERED_PROMPTS = 4096
"""Rendered prompts that a chat keeps: the same few questions are asked about many images."""


class _ImageMemory:
    """An image processor that processes each image object once; its outputs are the real one's.

    Args:
        real: The image processor.
    """

    def __init__(self, real: Any) -> None:  # noqa: ANN401 - every family has its own
        self.real = real
        self.known: dict[int, tuple[Any, dict[str, Any]]] = {}  # by id: the image, kept so that its id stays its own

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.real, name)

    def __call__(self, images: Any, **settings: Any) -> Any:  # noqa: ANN401
        """Process a batch: a list of images, or of lists of one image."""
        if any(isinstance(image, list) and len(image) != 1 for image in images):
            return self.real(images, **settings)
        outputs = [self._once(image, settings) for image in images]
        joined = {key: _join([output[key] for output in outputs]) for key in outputs[0]}
        if any(value is None for value in joined.values()):
            return self.real(images, **settings)
        return type(outputs[0])(joined)

    def _once(self, image: Any, settings: dict[str, Any]) -> Any:  # noqa: ANN401
        key = id(image[0] if isinstance(image, list) else image)
        if key not in self.known:
            self.known[key] = image, self.real([image], **settings)
        return self.known[key][1]


def _join(parts: list[Any]) -> Any:  # noqa: ANN401
    """Join what was made of single images as a batch of them would be; None where the batch would have been padded."""
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat(parts) if len({part.shape[1:] for part in parts}) == 1 else None
    return [one for part in parts for one in part] if all(isinstance(part, list) for part in parts) else None


class KeyedSampler(LogitsProcessor):
    """Sample each row with noise keyed by (its seed, step): a row's draw does not depend on the rest of the batch.

    Used with greedy search: all tokens but the drawn one are ruled out. The draw inverts the cumulative distribution
    at one uniform number per row and step, so no noise over the vocabulary is needed.

    Args:
        seeds: One per row.
        temperature: Divides the logits, > 0.
        top_k: Draw among the k likeliest tokens; 0 for all.
        top_p: Draw among the likeliest tokens that together reach this probability, in (0, 1].
    """

    def __init__(
        self, seeds: Sequence[int] | np.ndarray, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
    ) -> None:
        if not (temperature > 0 and top_k >= 0 and 0 < top_p <= 1):
            raise ValueError(
                f"temperature must be > 0, top_k >= 0 and top_p in (0, 1], got {temperature}, {top_k} and {top_p}"
            )
        self.seeds = np.asarray(seeds, dtype=np.uint64)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.step = 0

    def rows(self, rows: Sequence[int]) -> "KeyedSampler":
        """Return the sampler of these rows, at its first step."""
        return KeyedSampler(self.seeds[rows], temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Rule out all but one token in each row of ``scores`` (n, vocab)."""
        logits = scores.float() / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            smallest = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < smallest, -torch.inf)
        probs = logits.softmax(-1)
        if self.top_p < 1.0:
            ordered, order = probs.sort(descending=True, stable=True)
            beyond = ordered.cumsum(-1) - ordered >= self.top_p
            probs = probs.masked_fill(torch.zeros_like(beyond).scatter_(-1, order, beyond), 0.0)
        cumulative = probs.double().cumsum(-1)
        uniform = torch.from_numpy(keyed_uniform(self.seeds, self.step)).to(scores.device)[:, None]
        token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(-1, token.clamp_(max=scores.shape[-1] - 1), 0.0)


def keyed_uniform(seeds: np.ndarray, step: int) -> np.ndarray:
    """Return one float64 in [0, 1) per seed: SplitMix64 (Steele et al. 2014) of the seed, ``step`` draws on."""
    with np.errstate(over="ignore"):
        state = _mix(seeds) + np.uint64(step + 1) * np.uint64(0x9E3779B97F4A7C15)
        return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


class YesMargin(LogitsProcessor):
    """Note logit(yes) - logit(no) at the first token of each reply; changes nothing."""

    def __init__(self, yes_ids: Sequence[int], no_ids: Sequence[int]) -> None:
        self.yes_ids, self.no_ids = list(yes_ids), list(no_ids)
        self.margins: list[float] | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Look at ``scores`` (n, vocab) the first time."""
        if self.margins is None:
            logits = scores.float()
            margin = logits[:, self.yes_ids].logsumexp(-1) - logits[:, self.no_ids].logsumexp(-1)
            self.margins = margin.tolist()
        return scores


@torch.no_grad()
def reply(
    model: Any,  # noqa: ANN401 - any Hugging Face model that generates, PEFT's wrapper included
    chat: Chat,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    sampler: KeyedSampler | None = None,
) -> list[Reply]:
    """Let a model in eval mode reply to n questions, in batches of questions alike so that replies end together.

    Args:
        model: The model.
        chat: Its chat.
        images: n images.
        questions: n questions.
        max_new_tokens: Length limit of a reply, tokens.
        batch_size: Rows generated at once.
        sampler: Draws the tokens; greedy without.

    Returns:
        n replies, in the order of the questions.
    """
    order = sorted(range(len(questions)), key=lambda row: (len(questions[row]), questions[row], row))
    replies: dict[int, Reply] = {}
    with chat.each_image_once() if len({id(image) for image in images}) < len(images) else nullcontext():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = _reply_batch(
                model,
                chat,
                [images[row] for row in rows],
                [questions[row] for row in rows],
                max_new_tokens,
                sampler and sampler.rows(rows),
            )
            replies.update(zip(rows, batch, strict=True))
    return [replies[row] for row in range(len(questions))]


def _reply_batch(
    model: Any,  # noqa: ANN401
    chat: Chat,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    max_new_tokens: int,
    sampler: KeyedSampler | None,
) -> list[Reply]:
    inputs = {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for key, value in chat.inputs(images, questions).items()
    }
    yes_ids, no_ids = chat.yes_no_ids
    margin = YesMargin(yes_ids, no_ids) if yes_ids and no_ids else None
    processors = LogitsProcessorList([one for one in (margin, sampler) if one is not None])
    out = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_k=None,
        top_p=None,
        pad_token_id=chat.tokenizer.pad_token_id,
        logits_processor=processors,
    )
    new = out[:, inputs["input_ids"].shape[1] :]
    stops = model.generation_config.eos_token_id
    stops = torch.tensor(stops if isinstance(stops, list) else [-1 if stops is None else stops], device=new.device)
    ended = torch.isin(new, stops).any(-1).tolist()
    texts = chat.processor.batch_decode(new, skip_special_tokens=True)
    margins = margin.margins if margin is not None and margin.margins is not None else [None] * len(texts)
    return [Reply(text.strip(), not done, yes) for text, done, yes in zip(texts, ended, margins, strict=True)]


@dataclass(frozen=True, kw_only=True)
class VLM:
    """A local vision-language model that answers questions: a Responder.

    Args:
        model: Folder or hub id; any model that transformers loads as image-text-to-text.
        revision: Commit, tag or branch on the hub.
        adapter: Folder or hub id of a PEFT adapter to put on the model.
        system_prompt: Put before every conversation, if the template has a place for it.
        chat_template: Jinja template to use instead of the model's own.
        dtype: Type of the weights; auto: as they were saved.
        device: Where to run; auto: the first CUDA device, or the CPU.
        max_new_tokens: Length limit of a response, tokens.
        temperature: Of sampling, > 0; used when seeds are given.
        top_k: Sample among the k likeliest tokens; 0 for all.
        top_p: Sample among the likeliest tokens that together reach this probability.
        batch_size: Responses generated at once.
    """

    model: str
    revision: str | None = None
    adapter: str | None = None
    system_prompt: str | None = None
    chat_template: str | None = None
    dtype: DType = "auto"
    device: str = "auto"
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    batch_size: int = 8

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant, and folders that are not there."""
        check_folder(self.model)
        check_folder(self.adapter or self.model)
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        self._sampler([])

    @cached_property
    def chat(self) -> Chat:
        """How this model is asked."""
        return Chat(
            model=self.model,
            revision=self.revision,
            system_prompt=self.system_prompt,
            chat_template=self.chat_template,
        )

    @cached_property
    def network(self) -> Any:  # noqa: ANN401
        """The loaded model, in eval mode."""
        network = load_vlm(self.model, revision=self.revision, dtype=self.dtype)
        if self.adapter is not None:
            network = load_adapter(network, self.adapter)
        return network.to(resolve_device(self.device)).eval()

    def respond(
        self, images: Sequence[Image.Image], questions: Sequence[str], seeds: Sequence[int] | None = None
    ) -> list[Reply]:
        """Answer each question about its image: greedily, or, given one seed per row, by sampling."""
        return reply(
            self.network,
            self.chat,
            images,
            questions,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            sampler=None if seeds is None else self._sampler(seeds),
        )

    def _sampler(self, seeds: Sequence[int]) -> KeyedSampler:
        return KeyedSampler(seeds, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        self.__dict__.pop("network", None)
        free_cuda()


def load_vlm(model: str, *, revision: str | None = None, dtype: DType = "auto") -> Any:  # noqa: ANN401
    """Load a vision-language model from a folder or the hub, on the CPU, in the dtype asked for."""
    from transformers import AutoModelForImageTextToText

    return load_network(AutoModelForImageTextToText, model, revision=revision, dtype=dtype)


def load_adapter(network: Any, adapter: str, *, trainable: bool = False) -> Any:  # noqa: ANN401
    """Put a saved PEFT adapter on a model.

    Raises:
        ValueError: There is no such adapter, or it does not fit the model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    check_folder(adapter)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")  # they would stay at random
            return PeftModel.from_pretrained(network, adapter, is_trainable=trainable)
    except (OSError, ValueError, RuntimeError, SafetensorError, UserWarning) as error:
        raise ValueError(f"adapter {adapter!r} cannot be put on the model: {str(error).splitlines()[0]}") from error
