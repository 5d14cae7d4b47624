"""Eleven families of models are carried by the layouts that read an image and a prompt once: losses and gradients."""

from typing import Any, NamedTuple

import pytest
import torch
from dpo.adapters import spread
from dpo.drawn_pairs import Pair, draw
from vlm.eleven import ELEVEN
from vlm.hub_folders import Family, build, whole_processor

from synthalign.dpo.batch import PairTokens, PreferenceBatch, collate
from synthalign.dpo.carried import why_not_carried
from synthalign.dpo.features import image_features
from synthalign.dpo.layouts import Layout, Rows, Tree, Trie
from synthalign.dpo.logps import pair_logps
from synthalign.dpo.policy import LoRA, load_policy
from synthalign.vlm import Chat
from synthalign.vlm.tried import why_not_shared

SIZES = {"red circle on white": (48, 36), "green square on black": (30, 64)}  # px
PAIRS = [
    Pair("1", "red circle on white", "What is it?", "It is a red circle.", "It is a dog."),
    Pair("2", "green square on black", "What is it?", "A green square.", "There is no dog and no cup."),
    Pair("3", "red circle on white", "Is there a circle in the image?", "Yes, there is.", "No."),
]

# It compares token types by way of NumPy, as transformers has it for good.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


class Made(NamedTuple):
    """A family's policy in float64, its adapter not zero, and three pairs about two images of unlike sizes."""

    family: Family
    policy: Any
    chat: Chat
    batch: PreferenceBatch
    processor: Any  # made of its parts


@pytest.fixture(scope="module", params=ELEVEN, ids=lambda family: family.name)
def made(request, tmp_path_factory) -> Made:
    family: Family = request.param
    folder = build(family, tmp_path_factory.mktemp(family.name))
    with pytest.MonkeyPatch.context() as patch:
        if family.spells:
            patch.setattr(family.spells, str)
        chat = Chat(model=str(folder), chat_template=None if family.template else family.chat_template)
        assert chat.processor is not None  # loaded here, where what it needs is found
        processor = whole_processor(family, folder)
    pairs = [
        PairTokens(
            one.id,
            draw(one.drawing, SIZES[one.drawing]),
            one.drawing,
            one.question,
            *(chat.response_ids(one.question, answer) for answer in (one.chosen, one.rejected)),
        )
        for one in PAIRS
    ]
    policy = spread(load_policy(str(folder), dtype="float64", lora=LoRA(r=4, alpha=8))).eval()
    return Made(family, policy, chat, collate(pairs, chat), processor)


@pytest.mark.parametrize("layout", [Tree(), Trie()], ids=["tree", "trie"])
def test_layouts_give_the_models_own_logps(made, layout):
    assert why_not_carried(layout, made.policy, made.batch, image_features(made.policy, made.batch)) is None


def test_gradients_are_those_of_plain_rows(made):
    trained = [one for one in made.policy.parameters() if one.requires_grad]

    def gradients(layout: Layout) -> tuple[torch.Tensor, ...]:
        logps = pair_logps(made.policy, layout(made.policy, made.batch), image_features(made.policy, made.batch))
        return torch.autograd.grad((logps.chosen - logps.rejected).sum(), trained)

    alone = gradients(Rows())
    for layout in (Tree(), Trie()):
        for found, expected in zip(gradients(layout), alone, strict=True):
            # the norms of some families compute in float32 whatever they are given
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


def test_logps_are_those_of_whole_conversations_through_the_models_forward(made):
    """One conversation by the family's own processor, from pixels, all logits."""
    with torch.no_grad():
        found = pair_logps(made.policy, Trie()(made.policy, made.batch), image_features(made.policy, made.batch))
        for row, pair in enumerate(PAIRS):
            for side, logps in (("chosen", found.chosen), ("rejected", found.rejected)):
                assert float(logps[row]) == pytest.approx(whole_logp(made, pair, getattr(pair, side)), rel=1e-5)


def whole_logp(made: Made, pair: Pair, response: str) -> float:
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": pair.question}]}
    ]
    text = made.processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    prompt = dict(made.processor(images=[[draw(pair.drawing, SIZES[pair.drawing])]], text=[text], return_tensors="pt"))
    prompt.pop("labels", None)
    said = made.processor.tokenizer(response + "<|im_end|>", add_special_tokens=False, return_tensors="pt").input_ids
    ids = torch.cat([prompt["input_ids"], said], 1)
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in prompt.items()}
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in inputs:  # to PaliGemma a response is a suffix, 1
            fill = 1 if made.family.name == "paligemma" else 0
            inputs[key] = torch.cat([inputs[key], torch.full_like(said, fill)], 1)
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    logps = made.policy(**inputs, use_cache=False).logits[0, -said.shape[1] - 1 : -1].log_softmax(-1)
    return float(logps.gather(-1, said[0, :, None]).sum())


def test_answers_share_their_prompts(made):
    image = draw(PAIRS[0].drawing)
    with torch.no_grad():
        asked = [PAIRS[0].question, PAIRS[2].question]
        assert why_not_shared(made.policy, made.chat, [image, image], asked, max_new_tokens=6) is None
