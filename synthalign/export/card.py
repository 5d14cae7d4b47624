"""The model card: what it is, how to load it, what it was trained on and measured by. It claims what is on file."""

import json
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from synthalign.export.base import Base
from synthalign.export.data import data_of
from synthalign.export.figures import Figures, table
from synthalign.export.source import Source

LIBRARIES = ("synthalign", "torch", "transformers", "peft", "lightning")


class Export(NamedTuple):
    """What the card is about."""

    name: str
    """Of its folder, or of its repository on the hub."""

    source: Source
    base: Base
    is_adapter: bool
    """Whether it is an adapter alone, which needs its base."""

    method: str
    """``LoRA``, say; empty where the model itself was trained."""

    step: int | None
    figures: Figures | str
    template: str | None
    dtype: str

    same_layout: bool = False
    """Whether all weights have the names and shapes of the base's."""


def card(export: Export) -> str:
    """Write README.md."""
    source = export.source
    parts = [
        f"---\n{yaml.safe_dump(_header(export), sort_keys=False, allow_unicode=True)}---",
        f"# {export.name.rpartition('/')[2]}",
        _what(export),
        f"## How to use it\n\n```python\n{_code(export)}```" + _served(export),
        f"## Training\n\n{_rows(_settings(export))}",
        f"## Data\n\n{_rows(data_of(source))}",
        f"## Evaluations\n\n{export.figures if isinstance(export.figures, str) else table(export.figures)}",
        f"## Versions\n\n{_rows(_versions(source))}",
        f"## The run's configuration\n\n<details>\n\n```yaml\n{source.text.strip()}\n```\n\n</details>",
    ]
    return "\n\n".join(parts) + "\n"


def _header(export: Export) -> dict[str, Any]:
    header: dict[str, Any] = {}
    if export.base.is_public:
        header["base_model"] = export.base.name
        header["base_model_relation"] = "adapter" if export.is_adapter else "finetune"
    header["library_name"] = "peft" if export.is_adapter else "transformers"
    header["pipeline_tag"] = "image-text-to-text"
    loss = _last(export.source.policy("loss"))
    header["tags"] = [tag for tag in ("synthalign", loss and loss.lower(), export.method.lower()) if tag]
    return header


def _what(export: Export) -> str:
    base = f"`{export.base.name}`" + (f" at revision `{export.base.revision}`" if export.base.revision else "")
    trained = f"{export.method} adapter" if export.method else "language model"
    lines = [
        f"A vision-language model: {base}, aligned on preference pairs (its {trained} was trained; "
        f"loss: {_part(export.source.policy('loss')) or 'unknown'})."
    ]
    if not export.base.revision and not Path(export.base.model).is_dir():
        lines.append("The run did not pin the base's revision.")
    if export.is_adapter:
        lines.append("This folder holds the adapter alone; the base comes from its own place.")
    elif export.method:
        lines.append(f"The adapter is merged into the base's weights: computed in float32, rounded to {export.dtype}.")
    if bits := export.source.policy("quantization"):
        here = (
            "the code below loads an unquantised one"
            if export.is_adapter
            else "here it is merged into unquantised ones"
        )
        lines.append(f"It was trained and measured on weights quantised to {bits}; {here}, so answers may differ.")
    if export.template is not None:
        lines.append("It was trained with a chat template of its own, `chat_template.jinja`.")
    if export.source.policy("system_prompt") is not None:
        lines.append("It was trained with the system prompt that the code below gives.")
    lines.append("Its license is not stated here; the base's terms go on to bind.")
    return "\n".join(lines)


def _code(export: Export) -> str:
    base, place = export.base, export.name
    pinned = f", revision={base.revision!r}" if base.revision and export.is_adapter else ""
    own = base.name if export.is_adapter else place
    dtype = export.source.policy("dtype") if export.is_adapter else None
    lines = ["import torch", *(["from peft import PeftModel"] if export.is_adapter else []), "from PIL import Image"]
    lines += ["from transformers import AutoModelForImageTextToText, AutoProcessor", ""]
    if not export.is_adapter:
        lines.append(f"folder = {place!r}  # seen from the folder around it")
        own_name = "folder"
    else:
        lines += [f"base = {own!r}", f"adapter = {place!r}  # seen from the folder around it"]
        own_name = "base"
    lines.append(f"processor = AutoProcessor.from_pretrained({own_name}{pinned})")
    lines.append(f"model = AutoModelForImageTextToText.from_pretrained({own_name}{pinned}, dtype={dtype or 'auto'!r})")
    if export.is_adapter:
        lines.append("model = PeftModel.from_pretrained(model, adapter)")
        if export.template is not None:
            lines.append(f"processor.chat_template = {export.template!r}")
    lines.append('model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")')
    lines += ["", "image = Image.open('image.jpg')", "question = 'Describe the image in detail.'", "messages = ["]
    system = export.source.policy("system_prompt")
    if system is not None:
        lines.append(f"    {{'role': 'system', 'content': [{{'type': 'text', 'text': {system!r}}}]}},")
    lines += [
        "    {'role': 'user', 'content': [{'type': 'image', 'image': image}, {'type': 'text', 'text': question}]},",
        "]",
        "inputs = processor.apply_chat_template(",
        "    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors='pt'",
        ").to(model.device)",
        "said = model.generate(**inputs, do_sample=False, max_new_tokens=256)[0, inputs['input_ids'].shape[1] :]",
        "print(processor.decode(said, skip_special_tokens=True))",
    ]
    return "\n".join(lines) + "\n"


def _served(export: Export) -> str:
    if not export.same_layout:
        return ""
    return (
        "\n\nAll weights have the names and shapes of the base's, so what serves the base should serve this. "
        f"`transformers serve {export.name}` was tried on exports of this kind, `vllm serve {export.name}` was not."
    )


def _settings(export: Export) -> dict[str, Any]:
    source = export.source
    lora = source.policy("lora")
    told = {
        "Loss": _part(source.policy("loss")),
        "LoRA": _brief(lora, "r", "alpha", "dropout") if export.method else None,
        "Type of the base's weights": source.policy("dtype"),
        "Quantisation of the base": source.policy("quantization"),
        "Precision": source.setting("trainer", "precision"),
        "Optimizer": _part(source.policy("optimizer")),
        "Schedule": _part(source.policy("schedule")),
        "Epochs": source.setting("trainer", "max_epochs"),
        "Optimizer steps": export.step,
        "Pairs in a batch": source.setting("data", "init_args", "batch_size"),
        "Batches in a step": source.setting("trainer", "accumulate_grad_batches"),
        "Strategy": source.setting("trainer", "strategy"),
        "Devices": source.setting("trainer", "devices"),
        "Seed": source.setting("seed_everything"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _versions(source: Source) -> dict[str, str]:
    begun = re.match(r"# lightning.pytorch==(\S+)", source.text)
    told = {"trained with": f"lightning {begun[1]}"} if begun else {}
    now = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)]
    return told | {"exported with": ", ".join(now)}


def _rows(said: Mapping[str, Any]) -> str:
    cells = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in said.items()]
    return "\n".join(["| | |", "|---|---|", *cells])


def _last(part: object) -> str | None:
    path = part.get("class_path") if isinstance(part, dict) else None
    return path.rpartition(".")[2] if isinstance(path, str) else None


def _part(part: object) -> str | None:
    """Name a part by its class and its settings."""
    name = _last(part)
    args = part.get("init_args") if isinstance(part, dict) else None
    return name and (f"{name}({_brief(args, *args)})" if isinstance(args, dict) and args else name)


def _brief(settings: object, *names: str) -> str | None:
    if not isinstance(settings, dict):
        return None
    return ", ".join(f"{name}={json.dumps(settings[name])}" for name in names if settings.get(name) is not None)
