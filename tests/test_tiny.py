"""The tiny models are what they say: each loads through its Auto class, runs, and depends on what it is given."""

import hashlib

import pytest
import tiny
import torch
from PIL import Image

QUESTION = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog in the image?"}]},
]
RED, BLUE = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))


@pytest.fixture(scope="module")
def llava(tiny_llava):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoProcessor.from_pretrained(tiny_llava), AutoModelForImageTextToText.from_pretrained(tiny_llava).eval()


def test_llava_sees_the_image(llava):
    processor, model = llava
    text = processor.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert text == "USER: <image>\n Is there a dog in the image? ASSISTANT:"
    inputs = processor(text=[text, text], images=[RED, BLUE], padding=True, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum(dim=1).tolist() == [4, 4]
    with torch.no_grad():
        red, blue = model(**inputs).logits[:, -1].log_softmax(-1)
    assert (red - blue).abs().max() > 0.1  # nats


def test_llava_marks_the_reply_and_pads_on_the_left(llava):
    processor, _ = llava
    talks = [[*QUESTION, {"role": "assistant", "content": reply}] for reply in ("No.", "Yes, there is a dog.")]
    for talk in talks:
        talk[0] = {"role": "user", "content": [{"type": "image", "image": RED}, QUESTION[0]["content"][1]]}
    batch = processor.apply_chat_template(
        talks,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True},
    )
    masks = torch.as_tensor(batch["assistant_masks"]).bool()
    replies = [processor.tokenizer.decode(ids[mask]) for ids, mask in zip(batch["input_ids"], masks, strict=True)]
    assert replies == [" No.</s>", " Yes, there is a dog.</s>"]
    assert batch["attention_mask"][0, 0] == 0 and batch["attention_mask"][:, -1].tolist() == [1, 1]


def test_llava_generates_the_same_alone_and_in_a_padded_batch(llava):
    processor, model = llava
    texts = [f"USER: <image>\n{question} ASSISTANT:" for question in ("Why?", "How many chairs are there?")]
    batch = processor(text=texts, images=[RED, BLUE], padding=True, return_tensors="pt")
    together = model.generate(**batch, max_new_tokens=5, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for row, text, image in zip(together, texts, (RED, BLUE), strict=True):
        one = processor(text=text, images=image, return_tensors="pt")
        alone = model.generate(**one, max_new_tokens=5, do_sample=False)[0, one["input_ids"].shape[1] :]
        assert row[: len(alone)].tolist() == alone.tolist()


def test_yes_and_no_are_single_tokens(llava):
    processor, _ = llava
    for word in ("yes", "no", "Yes", "No", " yes", " no", " Yes", " No"):
        assert len(processor.tokenizer.encode(word, add_special_tokens=False)) == 1, word


def test_clip_scores_images_against_texts(tiny_clip):
    from transformers import AutoModel, AutoProcessor

    processor, model = AutoProcessor.from_pretrained(tiny_clip), AutoModel.from_pretrained(tiny_clip).eval()
    inputs = processor(text=["a cup", "two dogs"], images=[RED, BLUE], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
    assert logits.shape == (2, 2)
    assert logits.unique().numel() == 4


def test_reward_scores_a_conversation_whatever_its_padding(tiny_reward):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_reward)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward).eval()
    talks = [
        [{"role": "user", "content": "Is there a dog?"}, {"role": "assistant", "content": reply}]
        for reply in ("Yes, there is a dog.", "No.")
    ]
    texts = tokenizer.apply_chat_template(talks, tokenize=False)
    assert texts[1] == "<s><|user|>Is there a dog?</s><|assistant|>No.</s>"
    scores = {}
    for side in ("left", "right"):
        tokenizer.padding_side = side
        with torch.no_grad():
            scores[side] = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.squeeze(-1)
    assert scores["left"].shape == (2,)
    assert (scores["left"][0] - scores["left"][1]).abs() > 0.1
    torch.testing.assert_close(scores["left"], scores["right"])


@pytest.mark.parametrize(
    ("fixture", "settings"), [("tiny_sd", {}), ("tiny_sd3", {"text_encoder_3": None, "tokenizer_3": None})]
)
def test_diffusion_draws_by_prompt_and_seed(fixture, settings, request):
    from diffusers import AutoPipelineForText2Image

    pipeline = AutoPipelineForText2Image.from_pretrained(request.getfixturevalue(fixture), **settings)
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str, seed: int) -> Image.Image:
        generator = torch.Generator().manual_seed(seed)
        size = tiny.DRAWING_SIZE
        return pipeline(prompt, num_inference_steps=2, height=size, width=size, generator=generator).images[0]

    first = draw("a red cup", 0)
    assert first.size == (tiny.DRAWING_SIZE, tiny.DRAWING_SIZE)
    assert draw("a red cup", 0).tobytes() == first.tobytes()
    assert draw("a red cup", 1).tobytes() != first.tobytes()
    assert draw("two dogs and a chair", 0).tobytes() != first.tobytes()


@pytest.mark.parametrize("build", [tiny.build_llava, tiny.build_clip, tiny.build_reward, tiny.build_sd, tiny.build_sd3])
def test_a_seed_fixes_every_file(build, tmp_path):
    def digests(name: str, seed: int) -> dict[str, str]:
        folder = build(tmp_path / name, seed)
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*.safetensors")
        }

    before = torch.get_rng_state()
    first = digests("a", 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert first
    assert digests("b", 0) == first
    assert digests("c", 1) != first
