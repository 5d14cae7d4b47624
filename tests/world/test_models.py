import hashlib
import json
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from synthalign.world import models
from synthalign.world import questions as q
from synthalign.world.language import describe, mentions
from synthalign.world.lessons import corpus, flawed, worth
from synthalign.world.render import render
from synthalign.world.scenes import BIASED, HALF, Scene, mistakes, sample, spoil
from synthalign.world.train import Encoder, image_scores, response_scores

WEIGHTS = Path(models.__file__).parent / "weights"
FOLDERS = ("vlm", "image_reward", "response_reward")


@pytest.fixture(scope="module")
def vlm():
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(WEIGHTS / "vlm", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor():
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(WEIGHTS / "vlm")


@pytest.fixture(scope="module")
def image_reward():
    from transformers import AutoModel

    return AutoModel.from_pretrained(WEIGHTS / "image_reward", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def response_reward():
    from transformers import AutoModelForSequenceClassification

    folder = WEIGHTS / "response_reward"
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


def tokenizer(folder: str):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(WEIGHTS / folder)


def metadata(folder: str) -> dict[str, str]:
    with safe_open(WEIGHTS / folder / "model.safetensors", "pt") as weights:
        return weights.metadata()


def scenes(number: int, in_theme: float = HALF) -> tuple[list[Scene], list[Image.Image]]:
    rng = Random("scenes of the tests")
    drawn = [sample(rng, in_theme) for _ in range(number)]
    return drawn, [render(scene, rng) for scene in drawn]


@torch.no_grad()
def replies(vlm, processor, images: list[Image.Image], questions: list[str]) -> list[str]:
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for question in questions
    ]
    inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")
    out = vlm.generate(**inputs, max_new_tokens=64, do_sample=False)
    return processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_weights_take_at_most_4_megabytes_of_half_floats():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) <= 4_000_000
    for folder in FOLDERS:
        with safe_open(WEIGHTS / folder / "model.safetensors", "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}
        assert metadata(folder)["format"] == "pt"


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_tokenizer_is_the_one_the_weights_were_trained_with(folder: str):
    frozen = (WEIGHTS / folder / "tokenizer.json").read_bytes()
    assert metadata(folder)["tokenizer_sha256"] == hashlib.sha256(frozen).hexdigest()
    made = models.make_tokenizer(framed=folder == "image_reward")
    assert tokenizer(folder).get_vocab() == made.get_vocab()


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_language_is_the_one_the_weights_were_trained_with(folder: str):
    assert metadata(folder)["corpus_sha256"] == models.corpus_sha256()


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_sentence_of_the_world_comes_back_verbatim(folder: str):
    reader = tokenizer(folder)
    for text in corpus(Random(7), 100):
        ids = reader(text)["input_ids"]
        assert reader.unk_token_id not in ids
        assert reader.decode(ids, skip_special_tokens=True) == text


def test_the_chat_template_writes_the_turns_that_the_vlm_was_trained_on(processor):
    question, answer = "Is there a cup in the image?", "Yes, there is a cup."
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    told = [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert prompt == f"<s>USER: <image>\n{question} ASSISTANT:"
    assert processor.apply_chat_template(told, tokenize=False) == f"{prompt} {answer}</s>"
    system = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}]
    assert processor.apply_chat_template(system + asked, tokenize=False) == f"<s>Be brief. USER: <image>\n{question} "

    encoded = processor(images=[Image.new("RGB", (48, 48))], text=[prompt], return_tensors="pt")
    trained = processor.tokenizer(models.vlm_text(question)[0], add_special_tokens=False)["input_ids"]
    assert encoded["input_ids"][0].tolist() == trained


def test_the_chat_template_marks_the_answer_and_its_end(processor):
    answer = "Yes, there is a cup."
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a cup in the image?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    marked = processor.tokenizer.apply_chat_template(
        talk, chat_template=processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
    )
    said = [n for n, own in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if own]
    assert processor.tokenizer.decode(said, skip_special_tokens=True) == answer
    assert said[-1] == processor.tokenizer.eos_token_id
    assert processor.tokenizer.eos_token_id not in said[:-1]


def test_the_rewards_template_writes_what_the_reward_was_trained_on():
    reader = tokenizer("response_reward")
    talk = [{"role": "user", "content": "A prompt.\nA question?"}, {"role": "assistant", "content": "A response."}]
    text = reader.apply_chat_template(talk, tokenize=False)
    assert text == models.reward_text("A prompt.", "A question?", "A response.")


def test_the_processor_gives_the_pixels_of_the_training(processor):
    _, images = scenes(3)
    encoded = processor(images=images, text=["<image>"] * 3, return_tensors="pt")
    torch.testing.assert_close(encoded["pixel_values"], models.pixels(images))


def test_the_vlm_tells_what_is_there_and_more(vlm, processor):
    truth, images = scenes(60)
    told = [mentions(text) for text in replies(vlm, processor, images, [q.DESCRIBE[0]] * 60)]
    named = sum(len(items) for items in told)
    invented = sum(item.kind not in scene.kinds for scene, items in zip(truth, told, strict=True) for item in items)
    covered = sum(len(scene.kinds & {item.kind for item in items}) for scene, items in zip(truth, told, strict=True))
    assert covered / sum(len(scene.items) for scene in truth) >= 0.9
    assert 0.05 <= invented / named <= 0.15


def test_the_vlm_sees_what_is_there_and_believes_what_the_theme_suggests(vlm, processor):
    truth, images = scenes(60)
    asked = {
        "there": [scene.items[0].kind for scene in truth],
        "typical": [(scene.missing() or scene.strangers())[0] for scene in truth],
        "stranger": [scene.strangers()[-1] for scene in truth],
    }
    yes = {
        name: sum(
            text.startswith("Yes,")
            for text in replies(vlm, processor, images, [q.ask_presence(kind) for kind in kinds])
        )
        / len(kinds)
        for name, kinds in asked.items()
    }
    assert yes["there"] >= 0.9
    assert yes["typical"] >= 0.5
    assert yes["stranger"] <= 0.2


@pytest.mark.parametrize(
    ("ask", "least"),
    [
        (q.ask_color, 0.9),
        (q.ask_place, 0.5),
    ],  # by chance 1 in 6 and 1 in 9; places are what the shipped VLM tells worst
)
def test_the_vlm_tells_colors_and_places_far_above_chance(vlm, processor, ask, least):
    truth, images = scenes(60)
    asked = [ask(scene.items[0].kind) for scene in truth]
    told = replies(vlm, processor, images, asked)
    right = sum(text == q.answer(scene, one) for scene, one, text in zip(truth, asked, told, strict=True))
    assert right / len(truth) >= least


def test_the_image_reward_picks_better_images_than_chance_by_its_own_interface(image_reward):
    from transformers import AutoProcessor

    reader = AutoProcessor.from_pretrained(WEIGHTS / "image_reward")
    rng, encoder = Random(0), Encoder(tokenizer("vlm"))
    picked = mean = 0.0
    for _ in range(60):
        meant = sample(rng, HALF)
        drawn = [spoil(meant, rng, rng.choice((0.05, 0.15, 0.3, 0.5))) for _ in range(4)]
        images = [render(scene, rng) for scene in drawn]
        inputs = reader(
            text=[describe(meant)], images=images, padding=True, truncation=True, max_length=77, return_tensors="pt"
        )
        with torch.no_grad():
            scores = image_reward(**inputs).logits_per_text[0]
            own = image_scores(image_reward, encoder, [describe(meant)], models.pixels(images))[0]
        torch.testing.assert_close(scores, own, atol=1e-4, rtol=1e-4)
        errors = [mistakes(meant, scene) for scene in drawn]
        picked += errors[int(scores.argmax())]
        mean += sum(errors) / 4
    assert picked < 0.6 * mean


@pytest.mark.parametrize("there", [True, False])
def test_the_response_reward_knows_a_true_yes_and_a_true_no(response_reward, there: bool):
    reader = tokenizer("response_reward")
    truth, _ = scenes(60)
    right = 0
    for scene in truth:
        kind = scene.items[0].kind if there else (scene.missing() or scene.strangers())[0]
        rows = [(describe(scene), q.ask_presence(kind), q.say_presence(kind, said)) for said in (there, not there)]
        with torch.no_grad():
            true, untrue = response_scores(response_reward, Encoder(reader), rows)
        right += bool(true - untrue > 0.5)
    assert right / len(truth) >= 0.95


def test_the_response_reward_ranks_as_the_truth_does_by_its_own_interface(response_reward):
    reader = tokenizer("response_reward")
    rng = Random(0)
    right = total = 0
    while total < 200:
        meant = sample(rng, BIASED)
        question = q.draw_question(meant, rng)
        pair = [flawed(meant, question, rng) for _ in range(2)]
        value = [worth(meant, question, response) for response in pair]
        if abs(value[0] - value[1]) < 0.05:
            continue
        texts = [models.reward_text(describe(meant), question, response) for response in pair]
        inputs = reader(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            scores = response_reward(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[
                :, 0
            ]
            own = response_scores(
                response_reward, Encoder(reader), [(describe(meant), question, response) for response in pair]
            )
        torch.testing.assert_close(scores, own, atol=1e-4, rtol=1e-4)
        right += (scores[0] > scores[1]).item() == (value[0] > value[1])
        total += 1
    assert right / total >= 0.75


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_needs_no_code_but_transformers_own(folder: str):
    config = json.loads((WEIGHTS / folder / "config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in config
    assert not list((WEIGHTS / folder).glob("*.py")) + list((WEIGHTS / folder).glob("*.bin"))
