"""The policy: a vision-language model with a trainable adapter, with which off it is its own frozen reference.

Without an adapter the language model itself is trained.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from synthalign.vlm import load_adapter, load_vlm
from synthalign.vlm.families import decoder_of
from synthalign.weights import DType, Quantization

LANGUAGE_LINEARS = r".*(language_model|text_model).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""Every linear layer of the language model's blocks, in the names most families of transformers share."""


LARGEST = 1 << 16
"""Of a rank and of alpha: wider than any layer."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters on a model's linear layers.

    Source: Hu et al. 2021 (arXiv 2106.09685), by way of PEFT.

    Args:
        r: Rank.
        alpha: The update is scaled by alpha / r.
        dropout: On the adapters' input, in [0, 1).
        target_modules: Regular expression that a layer's whole name must match; by default every linear layer of the
            language model, vision tower and projector staying as they are.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str = LANGUAGE_LINEARS

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        if self.r < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"r must be >= 1 and dropout in [0, 1), got {self.r} and {self.dropout}")
        if self.r > LARGEST or abs(self.alpha) > LARGEST:
            raise ValueError(f"r and alpha must be at most {LARGEST}, got {self.r} and {self.alpha}")
        try:
            re.compile(self.target_modules)
        except re.error as error:
            raise ValueError(f"target_modules is no regular expression ({error}): {self.target_modules!r}") from error

    def __call__(self, network: Any) -> Any:  # noqa: ANN401 - any Hugging Face model
        """Freeze a model and put fresh adapters on it; it computes what it did until they are trained.

        Raises:
            ValueError: No layer's name matches.
        """
        from peft import get_peft_model

        try:
            return get_peft_model(network, self.config(), autocast_adapter_dtype=network.dtype.itemsize < 4)
        except ValueError as error:
            raise ValueError(f"LoRA fits no layer: {str(error).splitlines()[0]}") from error

    def config(self) -> Any:  # noqa: ANN401 - PEFT's, which is imported late
        """Return the same settings as a LoraConfig of PEFT."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=self.target_modules, bias="none"
        )


def load_policy(
    model: str,
    *,
    revision: str | None = None,
    dtype: DType = "auto",
    lora: LoRA | None = None,
    adapter: str | None = None,
    quantization: Quantization | None = None,
    device: torch.device | None = None,
) -> Any:  # noqa: ANN401
    """Load a policy: a saved adapter where one is given, otherwise a fresh one, otherwise the bare model, all frozen.

    Args:
        model: Folder or hub id.
        revision: Commit, tag or branch on the hub.
        dtype: Type of the frozen weights; auto: as they were saved. Adapters are trained in at least fp32.
        lora: Fresh adapters to put on.
        adapter: Folder or hub id of a saved PEFT adapter, trained on from there.
        quantization: Keep the matrices of the language model's layers in 4 bits (nf4) or 8 (int8).
        device: Where to put it; the CPU by default.

    Raises:
        ValueError: The model or the adapter cannot be loaded, or the adapter is another model's.
    """
    network = load_vlm(model, revision=revision, dtype=dtype, quantization=quantization, device=device)
    network.requires_grad_(False)
    if adapter is not None:
        return load_adapter(network, adapter, trainable=True)
    return network if lora is None else lora(network)


def train_language(network: Any) -> None:  # noqa: ANN401
    """Train the whole language model with its head; vision tower and projector stay as they are."""
    decoder_of(network).requires_grad_(True)
    network.get_output_embeddings().requires_grad_(True)


def trained_without_adapters(network: Any) -> list[str]:  # noqa: ANN401
    """Name the weights that are trained and stay with the adapters off: such a policy does not stay its reference."""
    with adapters_off(network):
        return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


@contextmanager
def adapters_off(network: Any) -> Iterator[None]:  # noqa: ANN401
    """Make the policy its own frozen reference for a while. A bare model is that already."""
    if hasattr(network, "disable_adapter"):
        with network.disable_adapter():
            yield
    else:
        yield


def save_adapter(
    network: Any,  # noqa: ANN401
    folder: Path,
    *,
    weights: dict[str, Tensor] | None = None,
    processor: Any = None,  # noqa: ANN401
) -> None:
    """Save the adapter as PEFT does, or a model without one whole; the folder is replaced once the new one is whole.

    Args:
        network: The policy.
        folder: Where to.
        weights: By name, at least those that are saved; the network's own by default.
        processor: Is saved beside it, if given.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    if not hasattr(network, "peft_config"):
        network.save_pretrained(part, **({} if weights is None else {"state_dict": weights}))
    elif weights is None:
        network.save_pretrained(part, save_embedding_layers=False)  # else PEFT asks the hub for the base's vocabulary
    else:
        _save_gathered(network, part, weights)
    if processor is not None:
        processor.save_pretrained(part)
    (part / "README.md").unlink(missing_ok=True)  # PEFT's, with nothing filled in; `synthalign export` writes one
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _save_gathered(network: Any, folder: Path, weights: dict[str, Tensor]) -> None:  # noqa: ANN401
    """Write what PEFT would, which looks for the weights' names among those of modules that FSDP has wrapped."""
    (name,) = network.peft_config
    replace(network.peft_config[name], inference_mode=True).save_pretrained(folder)
    kept = {key.replace(f".{name}.", "."): value.contiguous() for key, value in weights.items() if ".lora_" in key}
    file = folder / "adapter_model.safetensors"
    save_file(kept, file, metadata={"format": "pt"})
    file.chmod((folder / "adapter_config.json").stat().st_mode)  # it was made for its owner alone
