"""A saved adapter that is damaged, strange or dangerous is refused in words, and nothing of it is run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from synthalign.vlm import load_adapter, load_vlm


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_llava: Path) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=2, target_modules=r".*language_model.*q_proj")
    get_peft_model(load_vlm(str(tiny_llava)), config).save_pretrained(str(folder))
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "adapter")
    return tmp_path / "adapter"


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = float("inf")
    save_file(tensors, folder / "adapter_model.safetensors")


def of_another_rank(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    wider = {name: torch.cat([one, one], 0 if "lora_A" in name else 1) for name, one in tensors.items()}
    save_file(wider, folder / "adapter_model.safetensors")


def setting(**settings: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **settings}))

    return change


def test_what_peft_saved_is_put_on(adapter: Path, tiny_llava: Path):
    network = load_adapter(load_vlm(str(tiny_llava)), str(adapter), trainable=True)
    assert {name.split(".")[-3] for name, one in network.named_parameters() if one.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    frozen = load_adapter(load_vlm(str(tiny_llava)), str(adapter))
    assert not any(one.requires_grad for name, one in frozen.named_parameters() if "lora_" in name)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (not_finite, "holds numbers that are not finite, in base_model.*: take an earlier one"),
        (of_another_rank, "cannot be put on the model: Error.s. in loading state_dict for PeftModel.*: size mismatch"),
        (setting(alpha_pattern="{}"), "cannot be put on the model: 'str' object has no attribute 'keys'"),
        (setting(megatron_config={"x": 1}, megatron_core="this"), "imports? a module that the adapter names"),
    ],
)
def test_one_that_is_not_as_it_should_be(spoil: Callable[[Path], None], said: str, adapter: Path, tiny_llava: Path):
    spoil(adapter)
    with pytest.raises(ValueError, match=f"^adapter '.*' .*{said}"):
        load_adapter(load_vlm(str(tiny_llava)), str(adapter))
