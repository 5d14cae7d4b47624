"""Loading other people's weights: from a folder or the hub, never running their code, with errors one can act on."""

import gc
import logging
import os
from pathlib import Path
from typing import Any, Literal

import torch

DType = Literal["auto", "float32", "bfloat16", "float16", "float64"]
Quantization = Literal["nf4", "int8"]

UNREACHABLE = frozenset({"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout"})
"""Errors of huggingface_hub and of the library that it asks with."""


def load(kind: Any, model: str, *, revision: str | None = None, **settings: Any) -> Any:  # noqa: ANN401
    """Call ``kind.from_pretrained`` on a folder or hub id.

    Remote code is never run. For a transformers model use ``load_network``, which reads safetensors only.

    Args:
        kind: A class with ``from_pretrained``.
        model: Folder, or id on the Hugging Face hub.
        revision: Commit, tag or branch on the hub.
        **settings: Passed on.

    Raises:
        ValueError: There is no such folder or model, or it is not what ``kind`` reads.
    """
    from safetensors import SafetensorError

    check_folder(model)
    if revision is not None:
        settings["revision"] = revision
    try:
        # Left out, transformers would ask for it where there is a terminal.
        return kind.from_pretrained(model, trust_remote_code=False, **settings)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if not Path(model).is_dir() and _unreachable(error):
            reason = "the hub cannot be reached, and it is not among the models downloaded before"
        raise ValueError(f"model {model!r} cannot be loaded as {kind.__name__}: {reason}") from error


def _unreachable(error: BaseException | None) -> bool:
    """Whether an error came of a hub that does not answer, or of being told not to ask it."""
    while error is not None:
        if isinstance(error, ConnectionError) or type(error).__name__ in UNREACHABLE:
            return True
        error = error.__cause__ or error.__context__
    return False


def load_network(
    kind: Any,  # noqa: ANN401
    model: str,
    *,
    revision: str | None = None,
    dtype: DType = "auto",
    quantization: Quantization | None = None,
    device: torch.device | None = None,
) -> Any:  # noqa: ANN401
    """Load a transformers model in eval mode, with every weight it needs.

    Args:
        kind: A model class, or Auto class, of transformers.
        model: Folder, or id on the Hugging Face hub.
        revision: Commit, tag or branch on the hub.
        dtype: Type of the weights; auto: as they were saved.
        quantization: Keep the matrices of the language model's layers in 4 bits (nf4, constants quantised too; Dettmers
            et al. 2023, arXiv 2305.14314) or 8 (int8; Dettmers et al. 2022, arXiv 2208.07339). Vision tower, projector,
            embeddings and heads stay as they are. Such a model cannot be moved between devices: give ``device``.
        device: Where to put it; the CPU by default.

    Raises:
        ValueError: As ``load``; or weights are missing, which transformers would draw at random.
    """
    settings: dict[str, Any] = {}
    if quantization is not None:
        settings["quantization_config"] = _quantized(kind, model, revision, dtype, quantization)
        settings["device_map"] = {"": device or "cpu"}
    network, report = load(
        kind,
        model,
        revision=revision,
        dtype=resolve_dtype(dtype),
        use_safetensors=True,
        output_loading_info=True,
        **settings,
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"model {model!r} lacks weights of {type(network).__name__}: {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    if quantization is None and device is not None:
        network = network.to(device)
    for part in network.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):  # it repacks weights: narrow ones crash, gradients become 0
            part.support_avx512bf16_for_cpu = False
    return network.eval()


def _quantized(kind: Any, model: str, revision: str | None, dtype: DType, quantization: Quantization) -> Any:  # noqa: ANN401
    """Return how to quantise a model's decoder layers, and nothing else of it."""
    from transformers import AutoConfig, BitsAndBytesConfig

    config = load(AutoConfig, model, revision=revision)
    with torch.device("meta"):
        skeleton = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    layers = getattr(skeleton.get_decoder(), "layers", None) if hasattr(skeleton, "get_decoder") else None
    if layers is None:
        raise ValueError(f"model {model!r} cannot be quantised: {type(skeleton).__name__} shows no decoder layers")
    inside = {id(part) for part in layers.modules()}
    skipped = [
        name for name, part in skeleton.named_modules() if isinstance(part, torch.nn.Linear) and id(part) not in inside
    ]
    if quantization == "int8":
        # It says for every product that it casts to float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    saved = config.dtype or getattr(config.get_text_config(), "dtype", None) or torch.bfloat16
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=saved if dtype == "auto" else getattr(torch, dtype),
        llm_int8_skip_modules=skipped,
    )


def check_folder(model: str) -> None:
    """Refuse a path to nowhere before the hub is asked for it.

    Raises:
        ValueError: ``model`` looks like a path, and nothing is there.
    """
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") != 1 or "\\" in model
    if os.path.isdir(model) or not (looks_like_path or os.path.isdir(model.partition("/")[0])):  # Path's raise if long
        return
    raise ValueError(f"no model folder at {model!r} (seen from {Path.cwd()}); on the hub it would be owner/name")


def resolve_device(device: str) -> torch.device:
    """Turn ``auto`` into the first CUDA device, or the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def resolve_dtype(dtype: DType) -> torch.dtype | Literal["auto"]:
    """Turn a name into a torch dtype; ``auto`` stays, and means the dtype the weights were saved in."""
    return "auto" if dtype == "auto" else getattr(torch, dtype)


def free_cuda() -> None:
    """Give memory back to the device after a model was dropped."""
    gc.collect()  # hooks and wrappers may hold a model in cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
