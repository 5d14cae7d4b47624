"""How a question about an image becomes tokens for one model, and tokens a reply."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from synthalign.vlm.processors import load_processor
from synthalign.weights import check_folder, load


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
        processor = load_processor(self.model, revision=self.revision)
        prepare(processor, processor.tokenizer, self.model, self.chat_template)
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
            self._prompts[question] = render(
                self.processor, self._messages(question), self.model, add_generation_prompt=True
            )
        return self._prompts[question]

    def inputs(self, images: Sequence[Image.Image], questions: Sequence[str]) -> dict[str, Tensor]:
        """Encode n prompts for the model: tokens (n, longest), left-padded, and whatever it takes for images."""
        prompts = [self.prompt(question) for question in questions]
        encoded = self.processor(
            images=[[image] for image in images],
            text=prompts,
            padding=True,
            return_tensors="pt",
            add_special_tokens=adds_special(self.tokenizer, prompts[0]),
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
        whole = render(self.processor, [*self._messages(question), answer], self.model)
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
    def each_image_once(self) -> Iterator[dict[int, tuple[Image.Image, Any]]]:
        """Meanwhile, process an image that comes in several calls of ``inputs``, as the same object, once.

        Yields:
            By its id, each image and what the image processor gave for it; what is put there is not processed.
        """
        real = getattr(self.processor, "image_processor", None)
        if real is None:
            yield {}
            return
        memory = _ImageMemory(real)
        self.processor.image_processor = memory
        try:
            yield memory.known
        finally:
            self.processor.image_processor = real

    @cached_property
    def _image_tokens(self) -> dict[tuple[int, int], int]:
        return {}

    @cached_property
    def _prompts(self) -> dict[str, str]:
        return {}

    def _messages(self, question: str) -> list[dict[str, Any]]:
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        if self.system_prompt is None:
            return [user]
        return [{"role": "system", "content": [{"type": "text", "text": self.system_prompt}]}, user]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=adds_special(self.tokenizer, text)).input_ids)


def prepare(templated: Any, tokenizer: Any, model: str, chat_template: str | None) -> None:  # noqa: ANN401
    """Make a processor, or a tokenizer by itself, ready to put questions: its template, and padding on the left.

    Raises:
        ValueError: There is no chat template.
    """
    if chat_template is not None:
        templated.chat_template = chat_template
    if getattr(templated, "chat_template", None) is None:
        raise ValueError(f"model {model!r} has no chat template: give one as chat_template")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:  # whatever pads is masked
        tokenizer.pad_token = tokenizer.eos_token


def render(templated: Any, messages: list[dict[str, Any]], model: str, **settings: Any) -> str:  # noqa: ANN401
    """Put a conversation into the chat template of a processor or tokenizer.

    Raises:
        ValueError: The template refuses it.
    """
    from jinja2 import TemplateError

    try:
        return str(templated.apply_chat_template(messages, tokenize=False, **settings))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the chat template of {model!r} refuses turns of {roles}: {error}") from error


def adds_special(tokenizer: Any, text: str) -> bool:  # noqa: ANN401
    """Whether a tokenizer has to put the beginning of sequence, which some templates already render."""
    bos = tokenizer.bos_token
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
        self.known: dict[int, tuple[Any, Any]] = {}  # by id: the image, kept so that its id stays its own

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.real, name)

    def __call__(self, images: Any, **settings: Any) -> Any:  # noqa: ANN401
        """Process a batch: a list of images, or of lists of one image."""
        if any(isinstance(image, list) and len(image) != 1 for image in images):
            return self.real(images, **settings)
        outputs = [self._once(image, settings) for image in images]
        if len(outputs) == 1:
            return type(outputs[0])(dict(outputs[0]))
        joined = {key: _join([output[key] for output in outputs]) for key in outputs[0]}
        if any(value is None for value in joined.values()):
            return self.real(images, **settings)
        return type(outputs[0])(joined)

    def _once(self, image: Any, settings: dict[str, Any]) -> Any:  # noqa: ANN401
        one = image[0] if isinstance(image, list) else image
        key = id(one)
        if key not in self.known:
            self.known[key] = one, self.real([image], **settings)
        return self.known[key][1]


def _join(parts: list[Any]) -> Any:  # noqa: ANN401
    """Join what was made of single images as a batch of them would be; None where the batch would have been padded."""
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat(parts) if len({part.shape[1:] for part in parts}) == 1 else None
    return [one for part in parts for one in part] if all(isinstance(part, list) for part in parts) else None
