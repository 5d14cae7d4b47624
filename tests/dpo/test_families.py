"""Families that lay out or bound things their own way are scored as they score themselves."""

from pathlib import Path

import pytest
import tiny
import torch
from dpo.drawn_pairs import FOUR, draw
from dpo.scoring import logps_of
from transformers import (
    AutoProcessor,
    Gemma2Config,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from synthalign.dpo.batch import PairTokens, collate
from synthalign.dpo.carried import why_not_carried
from synthalign.dpo.features import image_features
from synthalign.dpo.layouts import Rows, Tree
from synthalign.dpo.policy import load_policy
from synthalign.vlm import Chat

# Its processor puts the beginning of sequence behind the image, and a line break behind the prompt.
PALIGEMMA_TEMPLATE = """\
<image>{{ messages[0].content[1].text }}{% for message in messages[1:] %}{{ message.content[0].text }}{% endfor %}"""

# It compares token types by way of NumPy, as transformers has it for good.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory, tiny_llava) -> Path:
    """A PaliGemma 2: its prompt attends to itself in both directions, and its logits are bounded."""
    folder = tmp_path_factory.mktemp("paligemma")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    processor = PaliGemmaProcessor(
        SiglipImageProcessor(size={"height": 28, "width": 28}, image_seq_length=4),
        AutoProcessor.from_pretrained(tiny_llava).tokenizer,
        chat_template=PALIGEMMA_TEMPLATE,
    )
    tokenizer = processor.tokenizer
    text = Gemma2Config(
        **shape,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        final_logit_softcapping=3.0,
        initializer_range=tiny.SPREAD,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = SiglipVisionConfig(**shape, image_size=28, patch_size=14, projection_dim=32)
    config = PaliGemmaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    torch.manual_seed(0)
    PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_paligemmas_logps_are_those_of_its_own_loss(paligemma):
    chat, network = Chat(model=str(paligemma)), load_policy(str(paligemma), dtype="float32")
    pairs = [
        PairTokens(
            pair.id,
            draw(pair.drawing),
            pair.drawing,
            pair.question,
            *(chat.response_ids(pair.question, answer) for answer in (pair.chosen, pair.rejected)),
        )
        for pair in FOUR
    ]
    batch = collate(pairs, chat)
    assert all(set(prompt) == {"input_ids", "token_type_ids"} for prompt in batch.prompts)
    # Gemma 2 bounds its attention's logits, which no packed row can
    assert "bounds its attention" in (why_not_carried(Tree(), network, batch, image_features(network, batch)) or "")
    with torch.no_grad():
        ours = logps_of(network, batch, Rows())
    processor = AutoProcessor.from_pretrained(paligemma)
    for row, pair in enumerate(FOUR):
        for side in ("chosen", "rejected"):
            encoded = processor(
                images=draw(pair.drawing),
                text=f"<image>{pair.question}",
                suffix=getattr(pair, side),
                return_tensors="pt",
            )
            with torch.no_grad():
                mean = network(**encoded).loss
            count = (encoded["labels"] != -100).sum()
            assert getattr(ours, f"{side}_tokens")[row] == count
            torch.testing.assert_close(getattr(ours, side)[row], -mean * count, rtol=1e-6, atol=0)
