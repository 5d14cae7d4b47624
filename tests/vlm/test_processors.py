"""Processors of families that take videos are loaded for images without torchvision, and give what they always give."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from dpo.drawn_pairs import draw
from transformers import AutoTokenizer, LlavaNextVideoConfig
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils import is_torchvision_available
from vlm.eleven import ELEVEN
from vlm.hub_folders import Family, build, whole_processor

from synthalign.vlm import Chat
from synthalign.vlm.processors import EXTRAS, load_processor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

IMAGES = [draw("red circle on white", (48, 36)), draw("green square on black", (30, 64))]
QUESTIONS = ["What is it?", "Is there a dog in the image?"]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
without_torchvision = pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")


@pytest.fixture(scope="module", params=ELEVEN, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory) -> Path:
    return build(family, tmp_path_factory.mktemp(family.name))


@pytest.fixture
def chat(family, folder, monkeypatch) -> Chat:
    if family.spells:
        monkeypatch.setattr(family.spells, str)
    return chat_of(family, folder)


def chat_of(family: Family, folder: Path) -> Chat:
    return Chat(model=str(folder), chat_template=None if family.template else family.chat_template)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_images_and_text_become_what_the_whole_processor_makes_of_them(family, folder, chat):
    found = chat.inputs(IMAGES, QUESTIONS)
    prompts = [chat.prompt(question) for question in QUESTIONS]
    images = [[image] for image in IMAGES]
    assert_same(found, whole_processor(family, folder)(images=images, text=prompts, padding=True, return_tensors="pt"))
    assert (found["input_ids"][0] == chat.tokenizer.convert_tokens_to_ids(family.filled)).any()


def test_a_processor_that_was_saved_is_loaded_again(family, folder, chat, tmp_path):
    chat.processor.save_pretrained(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    assert_same(chat_of(family, tmp_path).inputs(IMAGES, QUESTIONS), chat.inputs(IMAGES, QUESTIONS))
    saved = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
    assert saved["processor_class"] == family.processor["processor_class"]
    # for whoever has torchvision
    assert saved.get("video_processor", {}).get("video_processor_type") == family.video


def test_a_chat_goes_to_workers_that_are_not_forked(chat):
    expected = chat.inputs(IMAGES, QUESTIONS)
    assert_same(pickle.loads(pickle.dumps(chat)).inputs(IMAGES, QUESTIONS), expected)


@pytest.mark.parametrize("size", [(48, 36), (30, 64), (200, 20)])
def test_the_length_of_a_prompt_is_counted_without_its_image(chat, size):
    for question in QUESTIONS:
        real = chat.inputs([draw("red circle on white", size)], [question])["input_ids"].shape[1]
        assert chat.prompt_length(question, size) == real


def test_a_folder_of_the_older_form_is_loaded_too(tmp_path):
    """Qwen2-VL's on the hub: no processor_config.json, and the template in a file of its own form."""
    family = next(one for one in ELEVEN if one.name == "qwen2_vl")
    folder = build(family, tmp_path)
    expected = chat_of(family, folder).inputs(IMAGES, QUESTIONS)
    (folder / "processor_config.json").unlink()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": family.chat_template}), encoding="utf-8")
    assert_same(chat_of(family, folder).inputs(IMAGES, QUESTIONS), expected)


def test_smolvlm_says_what_it_lacks(tmp_path, monkeypatch):
    folder = build(next(one for one in ELEVEN if one.name == "smolvlm"), tmp_path)
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(ValueError, match="cannot be loaded: Package `num2words` is required") as caught:
        load_processor(str(folder))
    assert str(caught.value).endswith(": pip install 'synthalign[smolvlm]'") and "\n" not in str(caught.value)


@without_torchvision
def test_a_family_that_cannot_do_without_torchvision_says_so(tiny_llava, tmp_path):
    """LLaVA-NeXT-Video's constructor takes its part for videos first."""
    AutoTokenizer.from_pretrained(tiny_llava).save_pretrained(tmp_path)
    LlavaNextVideoConfig().save_pretrained(tmp_path)
    for part in ("processor", "video_preprocessor"):
        (tmp_path / f"{part}_config.json").write_text(
            '{"processor_class": "LlavaNextVideoProcessor", "video_processor_type": "LlavaNextVideoVideoProcessor"}'
        )
    with pytest.raises(ValueError, match="requires the Torchvision library but it was not found") as caught:
        load_processor(str(tmp_path))
    assert str(caught.value).endswith(": pip install 'synthalign[torchvision]'") and "\n" not in str(caught.value)


def test_paligemma_without_a_template_asks_for_one(tmp_path):
    folder = build(next(one for one in ELEVEN if one.name == "paligemma"), tmp_path)
    with pytest.raises(ValueError, match="has no chat template: give one as chat_template"):
        _ = Chat(model=str(folder)).processor


def test_the_extras_that_a_user_is_told_of_bring_those_packages():
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(pyproject)["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(line.startswith(package) for line in extras[extra])
