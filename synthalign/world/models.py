"""The world's tiny models, in Hugging Face's own classes, and how each is put into a folder that loads by itself.

Three folders: ``vlm`` (Llava: a CLIP eye of two layers, a Llama of three), ``image_reward`` (CLIP, used as PickScore
is) and ``response_reward`` (a Llama with one label). All share one word-level vocabulary, frozen in each folder's
``tokenizer.json``: were it made again from changed language code, the weights would read scrambled words, so each
weights file carries the fingerprints of the tokenizer and of a sample of the language that it was trained with.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from synthalign.world.lessons import corpus
from synthalign.world.render import SIZE

PATCH = 16  # pixels: one patch a cell
WIDTH = 96
MAX_WORDS = 77  # tokens of an image reward's prompt, as CLIP has it
SPECIAL = ("<pad>", "<s>", "<unk>", "</s>", "<image>")
PAD, START, _, END, IMAGE = range(len(SPECIAL))
SCAFFOLD = ("USER:", "ASSISTANT:", "\n")

CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['content'] is string %}{% set parts = [{'type': 'text', 'text': message['content']}] %}"
    "{% else %}{% set parts = message['content'] %}{% endif %}"
    "{% if message['role'] == 'system' %}"
    "{% for part in parts %}{{ part['text'] }}{% endfor %}{{ ' ' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ 'USER: ' }}{% for part in parts %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ ' ' }}"
    "{% else %}"
    "{{ 'ASSISTANT: ' }}{% generation %}{% for part in parts %}{{ part['text'] }}{% endfor %}{{ eos_token }}"
    "{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def vlm_text(question: str, answer: str | None = None) -> tuple[str, str]:
    """Return what `CHAT` makes of one question about an image, its image places spread out, and of the answer."""
    prompt = f"<s>USER: {'<image>' * (SIZE // PATCH) ** 2}\n{question} ASSISTANT:"
    return prompt, "" if answer is None else f"{answer}</s>"


def reward_text(prompt: str, question: str, response: str) -> str:
    """Return what `CHAT` makes of a drawing prompt, a question about its image, and a response."""
    return f"<s>USER: {prompt}\n{question} ASSISTANT: {response}</s>"


def corpus_sha256() -> str:
    """Return the fingerprint of a seeded sample of the world's language."""
    return hashlib.sha256("\n".join(corpus(Random(0), 200)).encode()).hexdigest()


def make_tokenizer(side: str = "right", *, framed: bool = False) -> Any:  # noqa: ANN401  (transformers is untyped)
    """Make the word-level tokenizer; what it encodes it decodes to the same text.

    Args:
        side: where padding goes.
        framed: whether encoding puts ``<s>`` and ``</s>`` around a text, as CLIP needs it.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex(r"[.,?\n]"), "isolated")]
    )
    seen = {word for text in corpus(Random(1), 1500) for word, _ in splitter.pre_tokenize_str(text)}
    vocabulary = [*SPECIAL, *SCAFFOLD, *sorted(seen)]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token=SPECIAL[2])
    )
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in SPECIAL])
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    if framed:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", START), ("</s>", END)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side=side,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_WORDS if framed else 512,
        extra_special_tokens={} if framed else {"image_token": "<image>"},
    )


@cache
def _image_processor() -> Any:  # noqa: ANN401
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


def _eye() -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
        "projection_dim": 128,
        "hidden_act": "gelu",
    }


def _llama(vocabulary: int, *, layers: int = 3, **others: Any) -> Any:  # noqa: ANN401
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        intermediate_size=256,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        initializer_range=0.05,
        **others,
    )


def make_vlm(vocabulary: int) -> Any:  # noqa: ANN401
    """Return an untrained VLM."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    text = _llama(vocabulary, tie_word_embeddings=True)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**_eye()),
            text_config=text,
            image_token_index=IMAGE,
            image_seq_length=(SIZE // PATCH) ** 2,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            tie_word_embeddings=True,
        )
    )
    settings = model.generation_config
    settings.pad_token_id, settings.bos_token_id, settings.eos_token_id = PAD, START, END
    return model


def make_image_reward(vocabulary: int) -> Any:  # noqa: ANN401
    """Return an untrained image reward."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_WORDS,
        "projection_dim": 128,
        "pad_token_id": PAD,
        "bos_token_id": START,
        # Not 2: for that id CLIP pools at the largest token id instead of at the end of the text.
        "eos_token_id": END,
        "hidden_act": "gelu",
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=_eye(), projection_dim=128, logit_scale_init_value=2.6))


def make_response_reward(vocabulary: int) -> Any:  # noqa: ANN401
    """Return an untrained response reward: the VLM's three layers, and two that compare."""
    from transformers import LlamaForSequenceClassification

    return LlamaForSequenceClassification(_llama(vocabulary, layers=5, num_labels=1))


def save_vlm(model: nn.Module, folder: Path) -> None:
    """Write the VLM with its processor."""
    from transformers import LlavaProcessor

    processor = LlavaProcessor(
        image_processor=_image_processor(),
        tokenizer=make_tokenizer("left"),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    _save(model, processor, folder)


def save_image_reward(model: nn.Module, folder: Path) -> None:
    """Write the image reward with its processor."""
    from transformers import CLIPProcessor

    _save(model, CLIPProcessor(image_processor=_image_processor(), tokenizer=make_tokenizer(framed=True)), folder)


def save_response_reward(model: nn.Module, folder: Path) -> None:
    """Write the response reward with its tokenizer."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    _save(model, tokenizer, folder)


def _save(model: Any, reader: Any, folder: Path) -> None:  # noqa: ANN401
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    reader.save_pretrained(folder)
    model.half().save_pretrained(folder)
    weights = folder / "model.safetensors"
    with safe_open(weights, "pt") as saved:
        metadata = dict(saved.metadata() or {})
    metadata["tokenizer_sha256"] = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    metadata["corpus_sha256"] = corpus_sha256()
    tensors = load_file(weights)
    save_file(tensors, weights, metadata=metadata)
    model.float()


def pixels(images: Sequence[Any]) -> torch.Tensor:
    """Turn pictures of the world's own size into pixel values, (n, 3, SIZE, SIZE)."""
    return _image_processor()(list(images), return_tensors="pt")["pixel_values"]
