"""The model card: what it is, how to load it, what it was trained on and measured by. It claims what is on file."""

import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
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

    is_pushed: bool
    """Whether ``name`` is that of a repository."""

    adapter: dict[str, Any] | None
    """What was trained, as PEFT has it; None where it was the model itself."""

    step: int | None
    figures: Figures | str
    template: str | None
    dtype: str

    same_layout: bool = False
    """Whether all weights have the names and shapes of the base's."""

    packages: Sequence[str] = ()
    """What the processor needs beside transformers."""

    @property
    def method(self) -> str | None:
        """``LoRA``, say."""
        kind = None if self.adapter is None else str(self.adapter["peft_type"])
        return "LoRA" if kind == "LORA" else kind


def card(export: Export) -> str:
    """Return the text of README.md, in Markdown under the hub's header."""
    source = export.source
    parts = [
        f"---\n{yaml.safe_dump(_header(export), sort_keys=False, allow_unicode=True)}---",
        f"# {export.name.rpartition('/')[2]}",
        _what(export),
        f"## How to use it\n\n{_needed(export)}\n\n```python\n{_code(export)}```" + _served(export),
        f"## Training\n\n{_rows(_settings(export))}",
        f"## Data\n\n{_rows(data_of(source))}",
        f"## Evaluations\n\n{export.figures if isinstance(export.figures, str) else table(export.figures)}",
        f"## Versions\n\n{_rows(_versions(source))}",
        "## The run's configuration\n\n<details><summary>config.yaml</summary>\n\n"
        f"```yaml\n{source.text.strip()}\n```\n\n</details>",
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
    method = export.method if export.is_adapter else None
    header["tags"] = ["synthalign", *(name.lower() for name in (loss, method) if name)]
    return header


def _what(export: Export) -> str:
    base, source = export.base, export.source
    revision = f" (revision `{base.revision}`)" if base.revision else ""
    trained = f"{export.method} adapters on it were" if export.method else "its language model was"
    lines = [
        f"`{base.name}`{revision}, a vision-language model, aligned with SynthAlign on preference pairs: {trained} "
        f"trained with the loss {_part(source.policy('loss')) or 'that the configuration below names'}."
    ]
    if base.is_public and not base.revision:
        lines.append("The base's revision is not pinned.")
    if (begun := source.policy("adapter")) and export.method:
        lines.append(f"Training went on from the adapter `{begun}`.")
    if export.is_adapter:
        lines.append("Here are the adapters alone, without the base.")
    elif export.method:
        lines.append(f"They are merged into the base's weights: computed in float32, rounded to {export.dtype}.")
    if bits := source.policy("quantization"):
        done = "trained and evaluated" if isinstance(export.figures, Figures) and export.figures.by_fit else "trained"
        here = "the code below loads whole ones" if export.is_adapter else "it is merged into whole ones"
        lines.append(f"It was {done} on a base with weights quantised to {bits}; {here}, so answers may differ.")
    if export.template is not None:
        lines.append("It was trained with a chat template of its own, `chat_template.jinja`.")
    if source.policy("system_prompt") is not None:
        lines.append("It was trained with the system prompt that the code below gives.")
    lines.append("No licence is stated here; the base's licence still applies.")
    return "\n".join(lines)


def _needed(export: Export) -> str:
    tried = [f"{name} (written with {version(name)})" for name in ("transformers", "peft")[: 1 + export.is_adapter]]
    names = ["torch", *export.packages, "Pillow", *tried]
    return f"This needs {', '.join(names[:-1])} and {names[-1]}:"


def _code(export: Export) -> str:
    base, place = export.base, export.name
    lines = ["import torch", *(["from peft import PeftModel"] if export.is_adapter else []), "from PIL import Image"]
    lines += ["from transformers import AutoModelForImageTextToText, AutoProcessor", ""]
    here = "" if export.is_pushed else "  # the path of this folder"
    if export.is_adapter:
        model, dtype = "base", export.source.policy("dtype") or "auto"
        pinned = f", revision={base.revision!r}" if base.revision else ""
        lines += [f"base = {base.name!r}", f"adapter = {place!r}{here}"]
    else:
        model, dtype, pinned = "name", "auto", ""
        lines.append(f"name = {place!r}{here}")
    lines.append(f"processor = AutoProcessor.from_pretrained({model}{pinned})")
    lines.append(f"model = AutoModelForImageTextToText.from_pretrained({model}{pinned}, dtype={dtype!r})")
    if export.is_adapter:
        lines.append("model = PeftModel.from_pretrained(model, adapter)")
        if export.template is not None:
            lines.append(f"processor.chat_template = {export.template!r}")
    lines.append("model = model.eval().to('cuda' if torch.cuda.is_available() else 'cpu')")
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
        "answer = model.generate(**inputs, do_sample=False, max_new_tokens=256)[0, inputs['input_ids'].shape[1] :]",
        "print(processor.decode(answer, skip_special_tokens=True))",
    ]
    return "\n".join(lines) + "\n"


def _served(export: Export) -> str:
    if not export.same_layout:
        return ""
    return (
        "\n\nAll weights have the names and shapes of the base's, so what serves the base should serve this. "
        "`transformers serve` was tried on a tiny LLaVA-1.5 so exported, vLLM was not tried."
    )


def _settings(export: Export) -> dict[str, Any]:
    source = export.source
    tokens = source.setting("data", "init_args", "max_tokens")
    steps, nodes = source.setting("trainer", "max_steps"), source.setting("trainer", "num_nodes")
    rows = {
        "Loss": _part(source.policy("loss")),
        export.method: _brief(export.adapter, "r", "lora_alpha", "lora_dropout"),
        "Type of the base's weights": source.policy("dtype"),
        "Quantisation of the base": source.policy("quantization"),
        "Precision": source.setting("trainer", "precision"),
        "Optimizer": _part(source.policy("optimizer")),
        "Schedule": _part(source.policy("schedule")),
        "Gradients clipped to": source.setting("trainer", "gradient_clip_val"),
        "Epochs, at most": source.setting("trainer", "max_epochs"),
        "Optimizer steps, at most": None if steps == -1 else steps,
        "Optimizer steps taken": export.step,
        "Pairs in a batch of a device": None if tokens else source.setting("data", "init_args", "batch_size"),
        "Tokens in a batch of a device, at most": tokens,
        "Batches of a device in a step": source.setting("trainer", "accumulate_grad_batches"),
        "Strategy": source.setting("trainer", "strategy"),
        "Devices of a node": source.setting("trainer", "devices"),
        "Nodes": None if nodes == 1 else nodes,
        "Seed": source.setting("seed_everything"),
    }
    return {name: value for name, value in rows.items() if name and value not in (None, "", "auto")}


def _versions(source: Source) -> dict[str, str]:
    begun = re.match(r"# lightning.pytorch==(\S+)", source.text)
    trained = {"Trained with": f"lightning {begun[1]}"} if begun else {}
    now = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)]
    return trained | {"Exported with": ", ".join(now)}


def _rows(facts: Mapping[str, Any]) -> str:
    cells = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in facts.items()]
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
    return ", ".join(f"{name}={settings[name]!r}" for name in names if settings.get(name) is not None)
