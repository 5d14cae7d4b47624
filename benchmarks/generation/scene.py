"""What every contender is given: a random LLaVA with its processor, images, questions, and how often each is asked.

G images, Q questions in all, N rows to be answered: image by image, question by question, sample by sample.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers as hf
from ladder.scene import BEGIN, END, IMAGE, PAD, SIZES  # type: ignore[import-not-found]
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from synthalign.store import seed_of
from synthalign.vlm import Chat

SPOKEN = ("USER:", "ASSISTANT:", "Yes", "yes", "No", "no")
FIRST_WORD = max(BEGIN, END, IMAGE, PAD) + 1 + len(SPOKEN)
"""Tokens from here on are made-up words; a text of n of them is n tokens long."""

TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role != 'system' %}{{- ' ' + message.role.upper() + ':' }}{% endif %}
    {%- for part in message.content if part.type == 'image' %}{{- ' <image>' }}{% endfor %}
    {%- for part in message.content if part.type == 'text' %}{{- ' ' + part.text }}{% endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{- ' ASSISTANT:' }}{% endif %}"""

LOGIT_SPREAD = 3.0
"""Standard deviation of a logit: some words are likely, and none is certain."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How much is asked of a model.

    Args:
        num_images: G.
        num_questions: About each image.
        num_samples: Answers to each question.
        new_tokens: Length of every answer.
        image_size: Side of an image before it is processed, px.
        system_words: Length of the text before every image, with the user's turn one token more.
        question_words: Shortest and longest question; the turn that follows is one token more.
    """

    num_images: int = 2
    num_questions: int = 4
    num_samples: int = 6
    new_tokens: int = 64
    image_size: int = 512
    system_words: int = 33
    question_words: tuple[int, int] = (13, 21)


ASKED = {
    "tiny": Asked(num_samples=3, new_tokens=16, image_size=64, system_words=5, question_words=(3, 9)),
    "small": Asked(),
    "llava-1.5-7b": Asked(),
}
"""By the name of a size of `ladder.scene`, whose model it is."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A model, and the rows that it answers.

    Args:
        network: The model.
        chat: Its chat.
        images: N, the same object where the image is the same.
        questions: N.
        seeds: N, of the samples.
        num_samples: Neighbouring rows that are samples of one question.
        new_tokens: Length of every answer.
    """

    network: Any
    chat: Chat
    images: Sequence[Image.Image]
    questions: Sequence[str]
    seeds: Sequence[int]
    num_samples: int
    new_tokens: int

    def of(self, rows: slice) -> "Scene":
        """Return the scene of some rows, each by itself."""
        images, questions, seeds = self.images[rows], self.questions[rows], self.seeds[rows]
        return replace(self, images=images, questions=questions, seeds=seeds, num_samples=1)

    @property
    def asked_once(self) -> "Scene":
        """The scene in which every question is asked once."""
        return self.of(slice(None, None, self.num_samples))

    def inputs(self) -> dict[str, Tensor]:
        """Encode all rows as the model takes them, padded on the left."""
        encoded = self.chat.inputs(self.images, self.questions)
        dtype = self.network.dtype
        return {
            key: value.to(self.network.device, dtype if value.is_floating_point() else None)
            for key, value in encoded.items()
        }

    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens that an answer was made of.

        Raises:
            RuntimeError: Some of them were special ones, which texts do without.
        """
        tokens = list(self.chat.tokenizer(text, add_special_tokens=False).input_ids)
        if len(tokens) != self.new_tokens:
            raise RuntimeError(f"an answer of {self.new_tokens} tokens has {len(tokens)} words: {text[:60]!r}")
        return tokens


class Prompts(NamedTuple):
    """Tokens of the prompts of a scene in which every question is asked once."""

    prefix: list[int]  # common to all, the image's places included
    suffixes: list[list[int]]  # what follows it, Q


def prompts(encoded: dict[str, Tensor]) -> Prompts:
    """Take left-padded prompts apart."""
    kept = encoded["attention_mask"].bool()
    rows = [ids[mask].tolist() for ids, mask in zip(encoded["input_ids"], kept, strict=True)]
    same = (len({row[place] for row in rows}) == 1 for place in range(min(map(len, rows)) - 1))
    shared = next((place for place, alike in enumerate(same) if not alike), min(map(len, rows)) - 1)
    return Prompts(rows[0][:shared], [row[shared:] for row in rows])


def scene(name: str, *, dtype: torch.dtype, device: torch.device, folder: Path, asked: Asked | None = None) -> Scene:
    """Make the scene of a size, the same every time; the folder takes the files of its processor."""
    asked, config = asked or ASKED[name], SIZES[name].config()
    drawn = random.Random(0)
    write_processor(folder, config)

    def text(length: int) -> str:
        return " ".join(_word(drawn.randrange(FIRST_WORD, config.text_config.vocab_size)) for _ in range(length))

    chat = Chat(model=str(folder), system_prompt=text(asked.system_words))
    images = [picture(asked.image_size, seed) for seed in range(asked.num_images)]
    rows = [
        (image, question)
        for image in images
        for question in [text(drawn.randint(*asked.question_words)) for _ in range(asked.num_questions)]
        for _ in range(asked.num_samples)
    ]
    return Scene(
        network=network_of(config, dtype=dtype, device=device),
        chat=chat,
        images=[image for image, _ in rows],
        questions=[question for _, question in rows],
        # Not 0, 1, 2, …: what PyTorch's generator draws from seeds so alike is alike enough for the test to notice.
        seeds=[seed_of("benchmark", row) for row in range(len(rows))],
        num_samples=asked.num_samples,
        new_tokens=asked.new_tokens,
    )


@torch.no_grad()
def network_of(config: Any, *, dtype: torch.dtype, device: torch.device) -> Any:  # noqa: ANN401
    """Make a model whose logits depend on image, question and position, and which never ends an answer.

    As they are drawn, weights are so small that attention is nearly even and an answer hardly depends on the prompt.
    """
    torch.manual_seed(0)
    with device:
        network = hf.AutoModelForImageTextToText.from_config(config, dtype=dtype).requires_grad_(False).eval()
    width = config.text_config.hidden_size
    wide = (512 / width) ** 0.5  # the factors below suit a width of 512
    factors = {"q_proj": 4 * wide, "k_proj": 4 * wide, "_proj": 2.5 * wide, "embed_tokens": 10.0}
    for name, parameter in network.named_parameters():
        if "multi_modal_projector" in name:
            parameter.mul_(3)
        elif "language_model" in name:
            parameter.mul_(next((factor for part, factor in factors.items() if part in name), 1.0))
    head = network.get_output_embeddings().weight
    head.mul_(LOGIT_SPREAD / (config.text_config.initializer_range * width**0.5))
    head[: FIRST_WORD - len(SPOKEN)] = 0  # a special token is hardly ever drawn, and never the likeliest
    network.generation_config.eos_token_id = None
    network.generation_config.pad_token_id = PAD
    return network


def write_processor(folder: Path, config: Any) -> None:  # noqa: ANN401
    """Write the configuration and a processor whose every word is one token, as large as the model's vocabulary."""
    special = {"<unk>": 0, "<s>": BEGIN, "</s>": END, "<pad>": PAD, "<image>": IMAGE}
    words = [*sorted(special, key=lambda word: special[word]), *SPOKEN]
    words += [_word(number) for number in range(FIRST_WORD, config.text_config.vocab_size)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    side = config.vision_config.image_size
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=hf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            extra_special_tokens=["<image>"],
            padding_side="left",
        ),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # CLIP's class token, which the default strategy takes off again
        chat_template=TEMPLATE,
    )
    config.save_pretrained(folder)
    processor.save_pretrained(folder)


def picture(size: int, seed: int) -> Image.Image:
    """Draw a picture of coloured squares."""
    drawn = random.Random(seed)
    small = Image.frombytes("RGB", (8, 8), drawn.randbytes(8 * 8 * 3))
    return small.resize((size, size), Image.Resampling.NEAREST)


def _word(token: int) -> str:
    return f"w{token}"
