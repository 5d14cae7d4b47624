"""One model is asked in one way; a row's reply depends on nothing but the row."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synthalign.types import Reply
from synthalign.vlm import VLM, Chat, KeyedSampler, YesMargin, keyed_uniform, load_vlm, reply

QUESTIONS = [
    "Why?",
    "Is there a dog in the image? Please answer yes or no.",
    "How many chairs are there?",
    "Describe the image in detail.",
]
rng = np.random.default_rng(0)
IMAGES = [Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in QUESTIONS]
RESPONSES = ["Yes.", " A red cup, and a green chair.\n", "猫 “quoted” 👍", "No: 1 < 2", "x"]


@pytest.fixture(scope="module")
def chat(tiny_llava: Path) -> Chat:
    return Chat(model=str(tiny_llava))


@pytest.fixture(scope="module")
def network(tiny_llava: Path) -> Any:
    return load_vlm(str(tiny_llava))


@pytest.fixture(scope="module")
def tiny_llava_next(tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-NeXT: it cuts an image into as many tiles as its shape asks for, so prompts differ in length."""
    from transformers import (
        AutoProcessor,
        LlavaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    folder = tmp_path_factory.mktemp("llava_next")
    small, tiles = LlavaConfig.from_pretrained(tiny_llava), [[28, 56], [56, 28], [56, 56]]
    tokenizer = AutoProcessor.from_pretrained(tiny_llava).tokenizer
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=tiles
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    config = LlavaNextConfig(
        vision_config=small.vision_config.to_dict(),
        text_config=small.text_config.to_dict(),
        image_token_id=small.image_token_id,
        image_grid_pinpoints=tiles,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def responder(folder: Path, **settings: Any) -> VLM:
    return VLM(model=str(folder), **({"max_new_tokens": 8} | settings))


def texts(replies: Sequence[Reply]) -> list[str]:
    return [one.text for one in replies]


# Chat


def test_the_prompt_is_the_models_own_template(chat):
    assert chat.prompt("Is there a dog?") == "USER: <image>\n Is there a dog? ASSISTANT:"


def test_prompt_and_response_are_the_tokens_of_the_whole_conversation(chat):
    for question in QUESTIONS:
        for response in RESPONSES:
            whole = f"USER: <image>\n {question} ASSISTANT: {response.strip()}</s>"
            expected = chat.tokenizer(whole).input_ids
            prompt = chat.tokenizer(chat.prompt(question)).input_ids
            assert prompt + chat.response_ids(question, response) == expected
            assert expected[-1] == chat.tokenizer.eos_token_id and expected[0] == chat.tokenizer.bos_token_id


def test_a_template_that_leaves_the_turn_open_gets_its_end(tiny_llava, chat):
    """LLaVA-1.5's own is such a template; without an end a model never learns to stop."""
    template = chat.processor.chat_template.replace("text + eos_token", "text + ' '")
    open_ended = Chat(model=str(tiny_llava), chat_template=template)
    for response in RESPONSES:
        assert open_ended.response_ids("Why?", response) == chat.response_ids("Why?", response)


def test_a_template_that_begins_replies_otherwise_still_gives_the_response(tiny_llava, chat):
    template = chat.processor.chat_template.replace("'ASSISTANT:'", "'ASSISTANT: <think></think>'")
    thinking = Chat(model=str(tiny_llava), chat_template=template)
    assert chat.tokenizer.decode(thinking.response_ids("Why?", " So it is. ")) == "So it is.</s>"


def test_an_empty_response_is_refused(chat):
    for response in ("", " \n"):
        with pytest.raises(ValueError, match=r"^an empty response to 'Why\?' has no tokens$"):
            chat.response_ids("Why?", response)


def test_a_template_that_renders_the_beginning_gets_no_second_one(tiny_llava, chat):
    doubled = Chat(model=str(tiny_llava), chat_template="{{ bos_token }}" + chat.processor.chat_template)
    ids, expected = (one.inputs(IMAGES[:1], ["Why?"])["input_ids"] for one in (doubled, chat))
    assert torch.equal(ids, expected)
    assert doubled.response_ids("Why?", "So.") == chat.response_ids("Why?", "So.")


def test_the_system_prompt_comes_first(tiny_llava):
    brief = Chat(model=str(tiny_llava), system_prompt="Be brief.")
    assert brief.prompt("Why?") == " Be brief. USER: <image>\n Why? ASSISTANT:"
    assert brief.tokenizer.decode(brief.response_ids("Why?", "So.")) == " So.</s>"


def test_mistakes_about_templates_are_one_line(tiny_llava, tmp_path):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}<image>"
    with pytest.raises(ValueError, match="refuses turns of system, user: no system role") as caught:
        Chat(model=str(tiny_llava), chat_template=refusing, system_prompt="Be brief.").prompt("Why?")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="refuses turns of user"):
        Chat(model=str(tiny_llava), chat_template="{% if %}").prompt("Why?")
    folder = shutil.copytree(tiny_llava, tmp_path / "mute")
    for name in ("processor_config.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        config.pop("chat_template", None)
        (folder / name).write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="has no chat template: give one as chat_template"):
        _ = Chat(model=str(folder)).processor


def test_inputs_are_padded_on_the_left_and_each_row_is_what_it_is_alone(chat):
    batch = chat.inputs(IMAGES, QUESTIONS)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    for row, (image, question) in enumerate(zip(IMAGES, QUESTIONS, strict=True)):
        alone = chat.inputs([image], [question])
        length = alone["input_ids"].shape[1]
        assert batch["input_ids"][row, -length:].tolist() == alone["input_ids"][0].tolist()
        assert batch["attention_mask"][row].tolist() == [0] * (batch["input_ids"].shape[1] - length) + [1] * length
        assert torch.equal(batch["pixel_values"][row], alone["pixel_values"][0])
        assert (alone["input_ids"] == chat.tokenizer.convert_tokens_to_ids("<image>")).sum() == 4


def test_a_tokenizer_without_padding_pads_with_its_end(tiny_llava, tmp_path, chat):
    folder = shutil.copytree(tiny_llava, tmp_path / "unpadded")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["pad_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    unpadded = Chat(model=str(folder))
    assert unpadded.tokenizer.pad_token == "</s>"
    got, expected = (one.inputs(IMAGES, QUESTIONS) for one in (unpadded, chat))
    assert torch.equal(got["attention_mask"], expected["attention_mask"])


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (200, 10)])
def test_the_length_of_a_prompt_is_counted_without_its_image(size, chat):
    for question in QUESTIONS:
        real = chat.inputs([Image.new("RGB", size, "red")], [question])["input_ids"].shape[1]
        assert chat.prompt_length(question, size) == real


def test_yes_and_no_are_the_first_tokens_of_such_replies(chat):
    yes, no = chat.yes_no_ids
    assert {chat.tokenizer.decode([token]) for token in yes} == {" Yes", " yes"}
    assert {chat.tokenizer.decode([token]) for token in no} == {" No", " no"}
    assert chat.max_length == 512


# Random numbers


def splitmix(value: int) -> int:
    """SplitMix64's finaliser, on Python's integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)


def test_uniform_numbers_are_splitmix64_of_seed_and_step():
    seeds = [0, 1, 2, 2**63 - 1, 2**64 - 1, 123456789]
    for step in (0, 1, 7, 1000):
        expected = [
            (splitmix((splitmix(seed) + (step + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for seed in seeds
        ]
        assert keyed_uniform(np.array(seeds, dtype=np.uint64), step).tolist() == expected


def test_splitmix64_is_the_published_one():
    """The first outputs for seed 1234567 that the reference implementation (prng.di.unimi.it) prints."""
    states = [(1234567 + (n + 1) * 0x9E3779B97F4A7C15) % 2**64 for n in range(3)]
    assert [splitmix(state) for state in states] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_numbers_are_uniform_and_independent_over_steps_and_seeds():
    draws = np.stack([keyed_uniform(np.arange(2000, dtype=np.uint64), step) for step in range(20)])
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=50, range=(0, 1))[0]
    expected = draws.size / 50
    assert ((counts - expected) ** 2 / expected).sum() < 49 + 4 * (2 * 49) ** 0.5  # chi-square, 4 sigma
    bound = 4 / draws[1:].size ** 0.5
    for first, second in ((draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1]), (draws[5:], draws[:-5])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < bound
    assert len(np.unique(draws)) == draws.size


# Sampling


def draw(logits: torch.Tensor, n: int, **settings: Any) -> Counter[int]:
    """Draw n tokens from one row of logits, each with its own seed."""
    sampler = KeyedSampler(range(n), **settings)
    ruled = sampler(torch.zeros(n, 1, dtype=torch.long), logits.expand(n, -1).clone())
    assert (torch.isfinite(ruled).sum(-1) == 1).all()
    return Counter(ruled.argmax(-1).tolist())


def reference(logits: torch.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    """Sampling probabilities in plain Python."""
    weights = {token: 2.718281828459045 ** (value / temperature) for token, value in enumerate(logits.tolist())}
    ranked = sorted(weights, key=lambda token: -weights[token])
    if top_k:
        ranked = ranked[:top_k]
    total = sum(weights[token] for token in ranked)
    kept, reached = [], 0.0
    for token in ranked:
        if reached < top_p:
            kept.append(token)
        reached += weights[token] / total
    mass = sum(weights[token] for token in kept)
    return [weights[token] / mass if token in kept else 0.0 for token in range(len(logits))]


LOGITS = torch.tensor([1.0, -0.5, 2.0, 0.0, -3.0, 1.5, 0.3, -1.0])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.7},
        {"top_p": 0.01},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
    ],
)
def test_tokens_are_drawn_with_the_probabilities_of_the_softmax(settings):
    n = 20_000
    counts, expected = draw(LOGITS, n, **settings), reference(LOGITS, **settings)
    assert all(expected[token] > 0 for token in counts)
    possible = [token for token, p in enumerate(expected) if p > 0]
    chi = sum((counts[token] - n * expected[token]) ** 2 / (n * expected[token]) for token in possible)
    freedom = len(possible) - 1
    assert chi <= freedom + 4 * (2 * freedom) ** 0.5


def test_a_low_temperature_is_greedy_and_impossible_tokens_are_never_drawn():
    assert set(draw(LOGITS, 1000, temperature=0.01)) == {2}
    masked = LOGITS.clone()
    masked[[0, 2, 7]] = -torch.inf
    assert set(draw(masked, 5000)) <= {1, 3, 4, 5, 6}


def test_a_draw_depends_on_seed_and_step_and_not_on_the_row():
    sampler, ids = KeyedSampler([5, 6, 5, 7]), torch.zeros(4, 1, dtype=torch.long)
    flat = torch.zeros(4, 10_000)
    first, second = (sampler(ids, flat).argmax(-1).tolist() for _ in range(2))
    assert first[0] == first[2] and second[0] == second[2]
    assert len({*first, *second}) == 6
    alone = KeyedSampler([6])
    assert [alone(ids[:1], flat[:1]).argmax().item() for _ in range(2)] == [first[1], second[1]]
    again = sampler.rows([3, 1])
    assert again(ids[:2], flat[:2]).argmax(-1).tolist() == [first[3], first[1]]


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"max_new_tokens": 0},
        {"batch_size": 0},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change, tiny_llava):
    with pytest.raises(ValueError, match=f"{next(iter(change))} .*, got "):
        responder(tiny_llava, **change)


# Replies


def by_hand(network: Any, chat: Chat, image: Image.Image, question: str, steps: int) -> tuple[list[int], float]:
    """The greedy tokens of one row by plain forwards without a cache, and the yes margin at the first."""
    inputs = dict(chat.inputs([image], [question]))
    said: list[int] = []
    margin = 0.0
    for step in range(steps):
        with torch.no_grad():
            logits = network(**inputs).logits[0, -1]
        if step == 0:
            yes, no = (logits[ids].exp().sum().log() for ids in chat.yes_no_ids)
            margin = float(yes - no)
        said.append(int(logits.argmax()))
        if said[-1] == chat.tokenizer.eos_token_id:
            break
        token = torch.tensor([[said[-1]]])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
    return said, margin


def test_batched_greedy_replies_are_those_of_plain_forwards_one_by_one(network, chat, tiny_llava):
    replies = responder(tiny_llava, batch_size=4).respond(IMAGES, QUESTIONS)
    for one, image, question in zip(replies, IMAGES, QUESTIONS, strict=True):
        said, margin = by_hand(network, chat, image, question, 8)
        assert one.text == chat.tokenizer.decode(said, skip_special_tokens=True).strip()
        assert one.yes_margin == pytest.approx(margin, abs=1e-4)
        assert one.truncated == (said[-1] != chat.tokenizer.eos_token_id)
    assert len({one.text for one in replies}) == len(replies)


def test_a_reply_depends_on_its_image(tiny_llava):
    replies = responder(tiny_llava).respond(IMAGES, ["Why?"] * 4)
    assert len({one.yes_margin for one in replies}) == 4


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_a_sampled_row_is_the_same_in_any_batch_and_order(batch_size, tiny_llava):
    rows = [(image, question, 1000 * n + m) for n, image in enumerate(IMAGES) for m, question in enumerate(QUESTIONS)]
    order = np.random.default_rng(batch_size).permutation(len(rows)).tolist()

    def ask(rows: list[tuple[Image.Image, str, int]], batch_size: int) -> list[str]:
        images, questions, seeds = zip(*rows, strict=True)
        return texts(responder(tiny_llava, batch_size=batch_size).respond(images, questions, seeds))

    expected = ask(rows, 5)
    assert ask([rows[n] for n in order], batch_size) == [expected[n] for n in order]
    assert ask(rows[3:4], 1) == expected[3:4]
    assert len(set(expected)) > 12


def test_samples_of_one_question_differ_and_leave_the_global_random_state_alone(tiny_llava):
    before = torch.get_rng_state()
    replies = texts(responder(tiny_llava).respond(IMAGES[:1] * 6, QUESTIONS[:1] * 6, range(6)))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(replies)) == 6
    assert replies == texts(responder(tiny_llava).respond(IMAGES[:1] * 6, QUESTIONS[:1] * 6, range(6)))


def test_the_first_sampled_token_follows_the_models_own_probabilities(network, chat, tiny_llava):
    n, cold = 600, 0.3
    with torch.no_grad():
        logits = network(**chat.inputs(IMAGES[:1], QUESTIONS[:1])).logits[0, -1]
    expected: Counter[str] = Counter()
    for token, p in enumerate((logits / cold).softmax(-1).tolist()):
        expected[chat.tokenizer.decode([token], skip_special_tokens=True).strip()] += p
    sampling = responder(tiny_llava, max_new_tokens=1, temperature=cold, batch_size=100)
    got = Counter(texts(sampling.respond(IMAGES[:1] * n, QUESTIONS[:1] * n, range(n))))
    for text, p in expected.most_common(3):
        assert abs(got[text] - n * p) < 4 * (n * p * (1 - p)) ** 0.5


def test_a_reply_that_ends_by_itself_is_not_truncated(tiny_llava, chat, network):
    """With one token fixed as the end, a reply runs up to it, in batches too."""
    said = by_hand(network, chat, IMAGES[0], QUESTIONS[0], 8)[0]
    end = next(token for token in said if token != said[0])
    model = load_vlm(str(tiny_llava))
    model.generation_config.eos_token_id = [end, chat.tokenizer.eos_token_id]
    replies = reply(model, chat, IMAGES, QUESTIONS, max_new_tokens=8, batch_size=4)
    stop = said.index(end)
    assert replies[0].text == chat.tokenizer.decode(said[: stop + 1], skip_special_tokens=True).strip()
    assert not replies[0].truncated
    assert reply(model, chat, IMAGES, QUESTIONS, max_new_tokens=stop, batch_size=4)[0].truncated
    model.generation_config.eos_token_id = None
    assert all(one.truncated for one in reply(model, chat, IMAGES, QUESTIONS, max_new_tokens=2, batch_size=4))


def test_the_models_own_sampling_settings_do_not_count(tiny_llava, tmp_path):
    folder = shutil.copytree(tiny_llava, tmp_path / "hot")
    settings = {"do_sample": True, "temperature": 9.0, "top_k": 1, "top_p": 0.1, "num_beams": 3}
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | settings))
    for seeds in (None, range(4)):
        assert responder(folder).respond(IMAGES, QUESTIONS, seeds) == responder(tiny_llava).respond(
            IMAGES, QUESTIONS, seeds
        )


def test_an_adapter_changes_the_replies_and_one_that_does_not_fit_is_one_line(tiny_llava, tmp_path):
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapter"
    tuned = get_peft_model(load_vlm(str(tiny_llava)), LoraConfig(r=2, target_modules=r".*language_model.*q_proj"))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.5)
    tuned.save_pretrained(folder)
    adapted = responder(tiny_llava, adapter=str(folder)).respond(IMAGES, QUESTIONS)
    assert adapted == reply(
        tuned.eval(), Chat(model=str(tiny_llava)), IMAGES, QUESTIONS, max_new_tokens=8, batch_size=8
    )
    assert adapted != responder(tiny_llava).respond(IMAGES, QUESTIONS)

    weights = load_file(folder / "adapter_model.safetensors")
    weights.popitem()
    save_file(weights, folder / "adapter_model.safetensors")
    (tmp_path / "nothing").mkdir()
    for broken, reason in ((folder, "missing adapter keys"), (tmp_path / "nothing", "adapter_config.json")):
        with pytest.raises(ValueError, match=f"^adapter '.*' cannot be put on the model: .*{reason}") as caught:
            responder(tiny_llava, adapter=str(broken)).respond(IMAGES, QUESTIONS)
        assert "\n" not in str(caught.value)


def test_no_questions_get_no_replies(tiny_llava):
    assert responder(tiny_llava).respond([], []) == responder(tiny_llava).respond([], [], []) == []


# LLaVA-NeXT

SHAPES = [(40, 30), (30, 90), (120, 20), (40, 30)]


def test_a_model_that_tiles_its_images_replies_in_batches_as_it_does_alone(tiny_llava_next):
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SHAPES]
    vlm = responder(tiny_llava_next, batch_size=4)
    for seeds in (None, range(4)):
        together = vlm.respond(images, QUESTIONS, seeds)
        alone = [
            vlm.respond([images[n]], [QUESTIONS[n]], None if seeds is None else [seeds[n]])[0]
            for n in range(len(images))
        ]
        assert texts(together) == texts(alone)
    said, margin = by_hand(vlm.network, vlm.chat, images[1], QUESTIONS[1], 8)
    greedy = vlm.respond(images, QUESTIONS)[1]
    assert greedy.text == vlm.chat.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert greedy.yes_margin == pytest.approx(margin, abs=1e-4)


def test_prompts_differ_in_length_with_the_shape_of_the_image(tiny_llava_next):
    chat = Chat(model=str(tiny_llava_next))
    lengths = [chat.prompt_length("Why?", size) for size in SHAPES]
    for size, length in zip(SHAPES, lengths, strict=True):
        assert chat.inputs([Image.new("RGB", size, "red")], ["Why?"])["input_ids"].shape[1] == length
    assert len(set(lengths)) == 3


def test_images_in_tiles_are_joined_where_they_are_alike_and_padded_as_a_batch_where_not(tiny_llava_next):
    chat = Chat(model=str(tiny_llava_next))
    wide, high, square = (Image.new("RGB", size, "red") for size in ((90, 30), (30, 90), (60, 60)))
    for images in ([wide, high, wide, wide], [wide, square, wide, high]):
        expected = chat.inputs(images, QUESTIONS)
        with chat.each_image_once():
            for _ in range(2):
                got = chat.inputs(images, QUESTIONS)
                assert got.keys() == expected.keys()
                assert all(torch.equal(got[key], expected[key]) for key in expected)


# Sparing work


def count_images(chat: Chat) -> list[int]:
    """How many images each call of the real image processor gets, from now on."""
    processor, counts = chat.processor.image_processor, []
    real = processor.preprocess

    def counted(images: Any, **settings: Any) -> Any:
        counts.append(len(images))
        return real(images, **settings)

    processor.preprocess = counted
    return counts


def test_an_image_that_is_asked_about_often_is_processed_once(network, tiny_llava):
    chat = Chat(model=str(tiny_llava))
    images = [IMAGES[0], IMAGES[1]] * 6
    questions = [QUESTIONS[n // 3] for n in range(12)]
    copies = [image.copy() for image in images]
    expected = reply(network, chat, copies, questions, max_new_tokens=4, batch_size=5)
    real = chat.processor.image_processor
    counts = count_images(chat)
    assert reply(network, chat, images, questions, max_new_tokens=4, batch_size=5) == expected
    assert sum(counts) == 2
    assert chat.processor.image_processor is real
    reply(network, chat, copies, questions, max_new_tokens=4, batch_size=5)
    assert sum(counts) == 2 + 12


def test_images_of_which_a_batch_would_be_padded_are_processed_as_a_batch(tiny_llava):
    """Their common shape is the batch's affair."""
    chat = Chat(model=str(tiny_llava))
    settings = {"do_center_crop": False, "do_resize": False}
    for name, value in settings.items():
        setattr(chat.processor.image_processor, name, value)
    small, large = Image.new("RGB", (28, 28), "red"), Image.new("RGB", (28, 42), "blue")
    counts = count_images(chat)
    with chat.each_image_once():
        same = chat.inputs([small, small], QUESTIONS[:2])
        assert same["pixel_values"].shape == (2, 3, 28, 28) and counts == [1]
        with pytest.raises(ValueError, match="pixel_values"):  # this processor cannot pad
            chat.inputs([small, large], QUESTIONS[:2])
        assert counts == [1, 1, 2]


def test_rendered_prompts_are_kept_within_bounds(tiny_llava, monkeypatch):
    monkeypatch.setattr("synthalign.vlm.REMEMBERED_PROMPTS", 3)
    chat = Chat(model=str(tiny_llava))
    for _ in range(2):
        for n in range(10):
            assert chat.prompt(f"Why {n}?") == f"USER: <image>\n Why {n}? ASSISTANT:"
            assert len(chat._prompts) <= 3


def test_yes_margin_is_noted_once_and_changes_nothing():
    noting = YesMargin([1, 2], [3])
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    assert torch.equal(noting(torch.zeros(2, 1), scores), scores)
    noting(torch.zeros(2, 1), scores * 9)
    e = 2.718281828459045
    expected = [np.log(e**1 + e**2) - 3, np.log(2 * e) - 1]
    assert noting.margins == pytest.approx(expected, abs=1e-6)
