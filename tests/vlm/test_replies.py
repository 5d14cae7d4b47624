"""One model is asked in one way; a row's reply depends on nothing but the row."""

import json
import shutil
from collections import Counter
from functools import wraps

import numpy as np
import pytest
import torch
from PIL import Image
from vlm.asking import IMAGES, QUESTIONS, alike, by_hand, count_images, noise, responder, texts

from synthalign.batching import noting_halvings
from synthalign.vlm import Chat, load_vlm, reply


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
    images = [noise(*shape) for shape in SHAPES]
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


def test_an_image_that_is_asked_about_often_is_processed_once(network, tiny_llava):
    chat = Chat(model=str(tiny_llava))
    images = [IMAGES[0], IMAGES[1]] * 6
    questions = [QUESTIONS[n // 3] for n in range(12)]
    copies = [image.copy() for image in images]
    expected = reply(network, chat, copies, questions, max_new_tokens=4, batch_size=5)
    real = chat.processor.image_processor
    counts = count_images(chat)
    assert alike(reply(network, chat, images, questions, max_new_tokens=4, batch_size=5), expected)
    assert sum(counts) == 2
    assert chat.processor.image_processor is real
    reply(network, chat, copies, questions, max_new_tokens=4, batch_size=5)
    assert sum(counts) == 2 + 12


def test_a_batch_that_memory_does_not_hold_is_halved(tiny_llava):
    vlm = responder(tiny_llava, batch_size=4)
    expected = vlm.respond(IMAGES, QUESTIONS)
    own, asked = vlm.network.forward, []

    def forward(**inputs):
        asked.append(len(inputs["input_ids"]))
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError
        return own(**inputs)

    vlm.network.forward = forward
    with noting_halvings() as notes:
        assert alike(vlm.respond(IMAGES, QUESTIONS), expected)
    assert notes == [f"replies of {tiny_llava}: out of memory with 4 rows at once, went on with 2"]
    assert max(asked) == 4


def test_a_model_is_tried_row_by_row_where_memory_holds_no_two(tiny_llava, capsys):
    vlm = responder(tiny_llava, batch_size=1)
    images = IMAGES[:1] * 2
    expected = [vlm.respond([image], [question])[0] for image, question in zip(images, QUESTIONS, strict=False)]
    vlm.release()
    own = vlm.network.forward

    @wraps(own)
    def forward(**inputs):
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError
        return own(**inputs)

    vlm.network.forward = forward
    with noting_halvings() as notes:
        assert alike(vlm.respond(images, QUESTIONS[:2]), expected)
    assert notes == [f"replies of {tiny_llava}: out of memory with 2 rows at once, went on with 1"]
    assert "replies:" not in capsys.readouterr().err


def test_a_template_that_refuses_is_no_fault_of_sharing(tiny_llava, capsys):
    vlm = responder(tiny_llava, chat_template="{{ raise_exception('only robots may ask') }}")
    with pytest.raises(ValueError, match="refuses turns of user: only robots may ask"):
        vlm.respond(IMAGES[:1], QUESTIONS[:1])
    assert "replies:" not in capsys.readouterr().err


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_model_replies_and_only_its_language_layers_changed(quantization, tiny_wide_llava, capsys):
    from bitsandbytes.functional import dequantize_4bit

    plain, packed = (responder(tiny_wide_llava, quantization=kind, device="cpu") for kind in (None, quantization))
    parts = dict(packed.network.named_modules())
    for name, part in plain.network.named_modules():
        if not isinstance(part, torch.nn.Linear):
            continue
        weight, got = part.weight, parts[name].weight
        if "language_model.layers" not in name:
            assert torch.equal(got, weight)
        elif quantization == "nf4":
            blocks = (dequantize_4bit(got.data, got.quant_state) - weight).view(-1, 64).abs()
            largest = weight.view(-1, 64).abs().amax(1, keepdim=True)
            assert (blocks <= 0.17 * largest).all()  # half of the code's widest gap: 0.152
        else:
            rounded = got.data * got.SCB[:, None] / 127
            assert (rounded - weight).abs().max() <= weight.abs().max() / 127
    rows = packed.respond(IMAGES * 2, QUESTIONS * 2, range(8))
    assert len({one.text for one in rows}) == 8
    assert "sharing prompts" not in capsys.readouterr().err
    packed.release()
    assert "network" not in packed.__dict__
