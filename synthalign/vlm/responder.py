"""A local vision-language model as a Responder: loaded at first use, an adapter on it if asked."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from synthalign.checkpoints import wish
from synthalign.tables.hub import gist
from synthalign.types import Reply
from synthalign.vlm.chat import Chat
from synthalign.vlm.replies import reply
from synthalign.vlm.sampler import KeyedSampler
from synthalign.weights import DType, Quantization, check_folder, free_cuda, load_network, resolve_device


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
        quantization: Keep the language model's weights in 4 bits (nf4) or 8 (int8) by bitsandbytes; null: as they are.
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
    quantization: Quantization | None = None
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
        network = load_vlm(
            self.model,
            revision=self.revision,
            dtype=self.dtype,
            quantization=self.quantization,
            device=resolve_device(self.device),
        )
        if self.adapter is not None:
            network = load_adapter(network, self.adapter).eval()
        return network

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


def load_vlm(
    model: str,
    *,
    revision: str | None = None,
    dtype: DType = "auto",
    quantization: Quantization | None = None,
    device: torch.device | None = None,
) -> Any:  # noqa: ANN401
    """Load a vision-language model from a folder or the hub, in the dtype asked for, on the CPU unless told."""
    from transformers import AutoModelForImageTextToText

    return load_network(
        AutoModelForImageTextToText,
        model,
        revision=revision,
        dtype=dtype,
        quantization=quantization,
        device=device,
    )


def load_adapter(network: Any, adapter: str, *, trainable: bool = False) -> Any:  # noqa: ANN401
    """Put a saved PEFT adapter on a model.

    Raises:
        ValueError: There is no such adapter, it does not fit the model, or holds numbers that are not finite.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    check_folder(adapter)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")  # they would stay at random
            config = PeftConfig.from_pretrained(adapter)
            check_adapter(vars(config))
            loaded = PeftModel.from_pretrained(network, adapter, is_trainable=trainable, config=config)
    except Exception as error:  # what a damaged file, or a strange value in the config, makes of PEFT
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        name = wish(error)
        reason = f"it is a pickle that wants to run {name}: refused, and nothing was run" if name else gist(error)
        raise ValueError(f"adapter {adapter!r} cannot be put on the model: {reason}") from error
    for name, tensor in get_peft_model_state_dict(loaded).items():
        if not tensor.isfinite().all():
            raise ValueError(f"adapter {adapter!r} holds numbers that are not finite, in {name}: take an earlier one")
    return loaded


def check_adapter(config: Mapping[str, Any]) -> None:
    """Refuse an adapter whose configuration would have PEFT import a module that it names.

    Raises:
        ValueError: It would.
    """
    if config.get("megatron_config"):
        raise ValueError("its megatron_config makes PEFT import a module that the adapter names: refused")
