"""A merged model: the base's layout and files, and in the adapted layers base + alpha / r times B A, rounded once."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from exported_runs import ALPHA, RANK, write_checkpoint, write_config, write_run
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from vlm.eleven import ELEVEN
from vlm.hub_folders import build

from synthalign.dpo.policy import LoRA, load_policy, save_adapter, train_language
from synthalign.export import write
from synthalign.vlm import load_vlm

VIDEO = {"llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl"}
"""Families whose processors have a part for videos, which needs torchvision."""


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def layout(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name, shape and type of every weight, from the files' headers."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = file.keys()
            parts = {name: file.get_slice(name) for name in names}
            found |= {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    return found


@pytest.fixture(scope="module")
def narrow(tiny_llava, tmp_path_factory):
    """The tiny LLaVA, saved in bfloat16."""
    folder = tmp_path_factory.mktemp("narrow") / "model"
    shutil.copytree(tiny_llava, folder)
    AutoModelForImageTextToText.from_pretrained(tiny_llava, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(narrow, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "fit"
    write_run(folder, narrow)
    return folder


@pytest.mark.parametrize("family", ELEVEN, ids=lambda family: family.name)
def test_of_every_family_the_weights_keep_names_shapes_and_types_and_the_other_files_every_byte(family, tmp_path):
    base = build(family, tmp_path / "model")
    write_run(tmp_path / "fit", base)
    merged = write(tmp_path / "fit", merged=True).path
    assert layout(merged) == layout(base)
    before, after = tensors(base), tensors(merged)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 2 * 7 and all("_proj.weight" in name for name in changed)  # two layers of seven matrices
    small = {path.name for path in base.iterdir() if path.suffix != ".safetensors"}
    assert "the names and shapes of the base's" in (merged / "README.md").read_text()
    needs = (merged / "README.md").read_text().partition("This needs ")[2].partition(":")[0]
    assert ("torchvision" in needs, "num2words" in needs) == (family.name in VIDEO, family.name == "smolvlm")
    assert {path.name for path in merged.iterdir()} == small | {"model.safetensors", "README.md", "export.json"}
    assert all((base / name).read_bytes() == (merged / name).read_bytes() for name in small)


def test_the_product_is_added_in_float32_and_rounded_once(run, narrow):
    merged = tensors(write(run, merged=True).path)
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    prefix, infix = "base_model.model.model.language_model.", ".lora_A.weight"
    layers = [name.removeprefix(prefix).removesuffix(infix) for name in adapter if name.endswith(infix)]
    assert len(layers) == 14
    for layer, name in ((layer, f"language_model.model.{layer}.weight") for layer in layers):
        a, b = (adapter[f"{prefix}{layer}.lora_{side}.weight"] for side in "AB")
        assert a.dtype == torch.float32
        expected = tensors(narrow)[name].float() + ALPHA / RANK * (b @ a)
        assert torch.equal(merged[name], expected.bfloat16())


def test_another_type_is_taken_where_asked_and_said_in_the_configuration(run, narrow, tmp_path):
    merged = write(run, tmp_path / "wide", merged=True, dtype="float32").path
    assert {kind for _, kind in layout(merged).values()} == {"F32"}
    said, before = (json.loads((one / "config.json").read_text()) for one in (merged, narrow))
    assert (before["dtype"], said["dtype"], said["text_config"]["dtype"]) == ("bfloat16", "float32", "float32")
    assert AutoModelForImageTextToText.from_pretrained(merged, dtype="auto").dtype == torch.float32


def test_large_weights_are_cut_into_files_with_an_index(run, tmp_path):
    whole = write(run, merged=True).path
    cut = write(run, tmp_path / "cut", merged=True, shard_gb=1e-4).path
    files = sorted(cut.glob("*.safetensors"))
    assert len(files) > 1 and (cut / "model.safetensors.index.json").is_file()
    one, other = tensors(whole), tensors(cut)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    AutoModelForImageTextToText.from_pretrained(cut)


def test_a_checkpoint_merges_to_what_its_adapter_does(run, tmp_path):
    by_adapter = tensors(write(run, merged=True).path)
    by_checkpoint = tensors(write(run / "checkpoints" / "best.ckpt", tmp_path / "out", merged=True).path)
    assert all(torch.equal(by_adapter[name], by_checkpoint[name]) for name in by_adapter)


def test_a_checkpoint_needs_no_saved_adapter(run, narrow, tmp_path):
    alone = write_config(tmp_path / "alone", narrow)
    shutil.copytree(run / "checkpoints", alone / "checkpoints")
    there, here = write(run).path, write(alone / "checkpoints" / "best.ckpt", lora=LoRA).path
    assert here == alone / "export" / "best-adapter"
    one, other = (load_file(path / "adapter_model.safetensors") for path in (there, here))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    said = [json.loads((path / "adapter_config.json").read_text()) for path in (there, here)]
    differing = {key for key in said[0] if said[0][key] != said[1].get(key)}
    assert differing == set()


@pytest.mark.parametrize("merged", [False, True])
def test_a_checkpoint_that_holds_the_base_as_well_is_exported_as_one_without(merged, run, narrow, tmp_path):
    """As ``checkpoint_base`` writes them."""
    both = write_config(tmp_path / "both", narrow)
    network = load_policy(str(narrow), adapter=str(run / "adapter"))
    write_checkpoint(both / "checkpoints" / "best.ckpt", network.state_dict(), step=7)
    there, here = (write(one / "checkpoints" / "best.ckpt", merged=merged, lora=LoRA).path for one in (run, both))
    expected, found = tensors(there), tensors(here)
    assert expected.keys() == found.keys()
    assert all(torch.equal(one, found[name]) for name, one in expected.items())


def test_a_checkpoint_of_an_adapter_that_trains_a_layer_whole_is_exported_as_the_adapter_is(narrow, tmp_path):
    settings = LoraConfig(r=2, target_modules=".*language_model.*q_proj", modules_to_save=["lm_head"])
    get_peft_model(load_vlm(str(narrow)), settings).save_pretrained(tmp_path / "begun", save_embedding_layers=False)
    network = load_policy(str(narrow), adapter=str(tmp_path / "begun"))
    run = write_config(tmp_path / "fit", narrow, adapter=str(tmp_path / "begun"))
    save_adapter(network, run / "adapter")
    trained = {name: one.detach() for name, one in network.named_parameters() if one.requires_grad}
    assert any("modules_to_save" in name for name in trained)
    write_checkpoint(run / "checkpoints" / "best.ckpt", trained, step=7)
    one, other = (tensors(write(place).path) for place in (run, run / "checkpoints" / "best.ckpt"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_of_a_whole_model_may_hold_a_tied_head_under_both_of_its_names(tmp_path):
    base = build(next(one for one in ELEVEN if one.name == "gemma3"), tmp_path / "model")
    network = load_policy(str(base))
    with torch.no_grad():
        network.get_output_embeddings().weight.add_(1)
    state = network.state_dict()
    assert state.keys() - dict(network.named_parameters()).keys() == {"lm_head.weight"}
    run = write_config(tmp_path / "fit", base, lora=None)
    write_checkpoint(run / "checkpoints" / "x.ckpt", state, step=3)
    before, after = tensors(base), tensors(write(run / "checkpoints" / "x.ckpt").path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and len(changed) == 1 and "embed_tokens" in changed.pop()


def test_a_template_of_the_runs_own_is_the_processors_and_the_tokenizers(run, narrow, tmp_path):
    template = "{% for message in messages %}{{ message.role }}{% endfor %}"
    for base in (narrow, tmp_path / "older"):
        if base != narrow:  # as folders had it before there were files for it
            shutil.copytree(narrow, base)
            kept = (base / "chat_template.jinja").read_text()
            (base / "chat_template.jinja").unlink()
            (base / "chat_template.json").write_text(json.dumps({"chat_template": kept}))
            settings = json.loads((base / "tokenizer_config.json").read_text())
            (base / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": kept}))
        own = write_config(tmp_path / f"run-{base.name}", base, chat_template=template)
        shutil.copytree(run / "adapter", own / "adapter")
        merged = write(own, merged=True).path
        assert AutoProcessor.from_pretrained(merged).chat_template == template
        assert AutoTokenizer.from_pretrained(merged).chat_template == template


def test_a_model_that_was_trained_whole_is_exported_as_it_is(narrow, tmp_path):
    network = load_policy(str(narrow), dtype="float32")
    train_language(network)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(1 / 3)
    run = write_config(tmp_path / "fit", narrow, lora=None)
    save_adapter(network, run / "model", processor=AutoProcessor.from_pretrained(narrow))
    (run / "model" / "pytorch_model.bin").write_bytes(b"anything")
    trained = {name: one.detach() for name, one in network.named_parameters() if one.requires_grad}
    write_checkpoint(run / "checkpoints" / "x.ckpt", trained, step=3)
    write_config(run, "./gone", lora=None)  # it needs its base no more
    saved, out = tensors(run / "model"), write(run).path
    write_config(run, narrow, lora=None)
    assert not (out / "pytorch_model.bin").exists()
    assert all(torch.equal(one, tensors(out)[name]) for name, one in saved.items())
    AutoModelForImageTextToText.from_pretrained(out)
    wide = tensors(write(run / "checkpoints" / "x.ckpt", tmp_path / "wide", dtype="float32").path)
    assert wide.keys() == saved.keys() and all(torch.equal(wide[name], saved[name]) for name in saved)
    plain = tensors(write(run / "checkpoints" / "x.ckpt").path)
    assert all(torch.equal(plain[name], saved[name].bfloat16()) for name in saved)


def test_an_adapter_trained_on_quantised_weights_is_merged_into_whole_ones_and_the_card_says_so(run, narrow, tmp_path):
    quantised = write_config(tmp_path / "fit", narrow, quantization="nf4")
    shutil.copytree(run / "adapter", quantised / "adapter")
    out = write(quantised, merged=True).path
    expected = tensors(write(run, merged=True).path)
    assert all(torch.equal(one, expected[name]) for name, one in tensors(out).items())
    said = (
        "It was trained on a base with weights quantised to nf4; it is merged into whole ones, so answers may differ."
    )
    assert said in (out / "README.md").read_text()
