"""Folders of vision-language models as the hub holds them, whose processors' files are written by hand.

So no processor is needed to make one.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import tiny
import torch
import transformers as hf

TURNS = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for part in message.content %}{{- 'IMAGE' if part.type == 'image' else part.text }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

PALIGEMMA_TURNS = """\
<image>{% for message in messages %}{% for part in message.content if part.type == 'text' %}{{ part.text }}\
{% endfor %}{% endfor %}"""
"""What a user gives PaliGemma as chat_template; its processor puts a line break behind the prompt."""


class Family(NamedTuple):
    """A family of models, and what its folders on the hub hold."""

    name: str
    model: Callable[[Any], Any]  # of its tokenizer
    image_processor: dict[str, Any]  # preprocessor_config.json
    processor: dict[str, Any]  # processor_config.json
    image: str = "<image>"  # what the template puts for an image
    filled: str = "<image>"  # the token that stands for a piece of it
    tokens: dict[str, str] | tuple[str, ...] = ()  # special ones, by name where the processor asks the tokenizer so
    video: str | None = None  # its video processor
    template: bool = True  # whether it has one of its own
    language: str = "language_model"  # what its language model is called
    spells: str | None = None  # where its processor keeps what spells how many frames a video has

    @property
    def chat_template(self) -> str:
        """What a user has to give where the folder has none."""
        return TURNS.replace("IMAGE", self.image) if self.template else PALIGEMMA_TURNS


def build(family: Family, folder: Path) -> Path:
    """Write a family's folder and return it."""
    tokenizer = _tokenizer(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = family.model(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    named = {"processor_class": family.processor["processor_class"]}
    _write(folder / "preprocessor_config.json", family.image_processor | named)
    _write(folder / "processor_config.json", family.processor)
    if family.video is not None:
        _write(folder / "video_preprocessor_config.json", {"video_processor_type": family.video} | named)
    if family.template:
        (folder / "chat_template.jinja").write_text(family.chat_template, encoding="utf-8")
    return folder


def whole_processor(family: Family, folder: Path) -> Any:
    """Make a folder's processor of its parts, with something in the place of the part for videos."""
    settings = dict(family.processor)
    kind = getattr(hf, settings.pop("processor_class"))
    parts = [hf.AutoImageProcessor.from_pretrained(folder), hf.AutoTokenizer.from_pretrained(folder)]
    if family.video is not None:
        parts.append(SimpleNamespace(num_frames=None, fps=None))
        kind = type(kind.__name__, (kind,), {"check_argument_for_proper_class": lambda *_: None})
    return kind(*parts, **settings, chat_template=family.chat_template)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _tokenizer(family: Family) -> Any:
    names = family.tokens.values() if isinstance(family.tokens, dict) else family.tokens
    special = list(dict.fromkeys([*names, "<image>", "<|im_start|>", "<|im_end|>"]))
    trained = tiny._byte_pair_tokenizer(special=special)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=trained.backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        extra_special_tokens=family.tokens if isinstance(family.tokens, dict) else special,
        padding_side="left",
    )
