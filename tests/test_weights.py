"""Other people's weights load whole or not at all, never run code, and a mistake is one line."""

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from synthalign.diffusion import DiffusionGenerator
from synthalign.rewards.clip import CLIPReward
from synthalign.rewards.sequence_classification import SequenceClassificationReward
from synthalign.vlm import VLM, Chat, load_vlm
from synthalign.weights import check_folder, load, load_network, resolve_device, resolve_dtype


def the_line(kind: type, model: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_network(kind, str(model))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copy(tiny_llava: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llava, tmp_path / "llava")


@pytest.mark.parametrize("model", ["./gone", "/gone", "~/gone", "gone", "runs/fit/adapter", "here/gone", "..\\gone"])
def test_a_path_to_nowhere_is_one_line_and_the_hub_is_not_asked(model, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        check_folder(model)
    assert (
        str(caught.value) == f"no model folder at {model!r} (seen from {tmp_path}); on the hub it would be owner/name"
    )


@pytest.mark.parametrize("model", ["llava-hf/llava-1.5-7b-hf", "stabilityai/stable-diffusion-3-medium-diffusers"])
def test_a_hub_id_is_left_to_the_hub(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_folder(model)
    (tmp_path / model).mkdir(parents=True)
    check_folder(model)  # a folder of that name goes first, as in transformers


@pytest.mark.parametrize("part", [Chat, VLM, CLIPReward, SequenceClassificationReward, DiffusionGenerator])
def test_every_part_refuses_an_absent_folder_before_anything_is_computed(part):
    with pytest.raises(ValueError, match=r"^no model folder at './gone'"):
        part(model="./gone")


def test_an_absent_adapter_or_processor_is_refused_before_anything_is_computed(tiny_llava, tiny_clip):
    with pytest.raises(ValueError, match=r"^no model folder at './gone'"):
        VLM(model=str(tiny_llava), adapter="./gone")
    with pytest.raises(ValueError, match=r"^no model folder at './gone'"):
        CLIPReward(model=str(tiny_clip), processor="./gone")


def test_a_folder_of_something_else_is_one_line(tmp_path, tiny_clip, tiny_reward):
    from transformers import AutoModelForImageTextToText

    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tiny_reward):
        assert the_line(AutoModelForImageTextToText, folder).startswith(
            f"model {str(folder)!r} cannot be loaded as AutoModelForImageTextToText: "
        )
    with pytest.raises(ValueError, match=r"cannot be loaded as AutoPipelineForText2Image: .*model_index\.json"):
        _ = DiffusionGenerator(model=str(tiny_clip)).pipeline
    with pytest.raises(ValueError, match="cannot be loaded as AutoProcessor"):
        _ = Chat(model=str(tmp_path / "empty")).processor


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_broken_weights_are_one_line(content, copy):
    from transformers import AutoModelForImageTextToText

    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000] if content is None else content)
    assert "cannot be loaded as AutoModelForImageTextToText: Error while deserializing" in the_line(
        AutoModelForImageTextToText, copy
    )


def test_pickled_weights_are_not_read(copy):
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    weights = copy / "model.safetensors"
    torch.save(load_file(weights), copy / "pytorch_model.bin")
    weights.unlink()
    assert "no file named model.safetensors" in the_line(AutoModelForImageTextToText, copy)


def test_missing_weights_are_refused_and_never_drawn_at_random(tiny_reward, tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification

    folder = shutil.copytree(tiny_reward, tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    line = the_line(AutoModelForSequenceClassification, folder)
    assert line == f"model {str(folder)!r} lacks weights of LlamaForSequenceClassification: score.weight"
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert the_line(AutoModelForSequenceClassification, folder).endswith(": model.norm.weight and 1 more")


def test_weights_come_in_the_dtype_asked_for_and_in_eval_mode(tiny_llava):
    assert load_vlm(str(tiny_llava)).dtype == torch.float32
    half = load_vlm(str(tiny_llava), dtype="bfloat16")
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert not half.training
    assert resolve_dtype("auto") == "auto" and resolve_dtype("float64") is torch.float64


def test_a_device_is_resolved_once_and_named_devices_stay(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    for available, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert resolve_device("auto") == torch.device(device)


def test_code_in_a_model_folder_is_not_run(copy, tmp_path):
    """A config may name classes in the folder's own Python files, for known models and for new ones."""
    witness = tmp_path / "ran"
    (copy / "evil.py").write_text(f"open({str(witness)!r}, 'w')\nfrom transformers import *\n")
    for name in ("processor_config.json", "tokenizer_config.json", "config.json"):
        config = json.loads((copy / name).read_text())
        config["auto_map"] = {
            kind: "evil.Evil" for kind in ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor")
        } | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        (copy / name).write_text(json.dumps(config))
    assert load_vlm(str(copy)).config.model_type == "llava"
    assert type(Chat(model=str(copy)).processor).__name__ == "LlavaProcessor"
    config["model_type"] = "evil"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be loaded as AutoModelForImageTextToText"):
        load_vlm(str(copy))
    assert not witness.exists()


def test_settings_reach_the_loader(tiny_reward):
    from transformers import AutoTokenizer

    assert load(AutoTokenizer, str(tiny_reward), padding_side="right").padding_side == "right"


def _parts(request: pytest.FixtureRequest) -> list[tuple[Any, str]]:
    folder = {name: str(request.getfixturevalue(f"tiny_{name}")) for name in ("llava", "clip", "reward", "sd")}
    return [
        (VLM(model=folder["llava"]), "network"),
        (CLIPReward(model=folder["clip"]), "network"),
        (SequenceClassificationReward(model=folder["reward"]), "network"),
        (DiffusionGenerator(model=folder["sd"]), "pipeline"),
    ]


def test_a_released_part_frees_its_weights_and_loads_them_again(request):
    for part, name in _parts(request):
        part.release()  # nothing is loaded yet
        weights = getattr(part, name)
        weights.holder = [weights]  # a cycle, as hooks and wrappers make them
        watch = weakref.ref(weights)
        assert getattr(part, name) is weights
        del weights
        gc.disable()
        try:
            part.release()
            assert watch() is None, part
        finally:
            gc.enable()
        assert getattr(part, name) is not None
