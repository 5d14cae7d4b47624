"""Features kept from earlier calls change no reply, and spare the tower and the image processor."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import pytest
import torch
from dpo.adapters import spread
from dpo.nine import gemma3, llava, qwen2_5_vl, qwen3_vl
from PIL import Image
from vlm.asking import IMAGES, QUESTIONS, alike, count_images, noise
from vlm.numbers import NumberChat
from vlm.test_shared import model_and_chat, rows_of

from synthalign.dpo.policy import LoRA, adapters_off
from synthalign.vlm import Chat, KeptFeatures, load_vlm, reply
from synthalign.vlm.families import encoder_stays
from synthalign.vlm.kept import content, outline


def frozen(family: Any, dtype: torch.dtype = torch.float64, window: int | None = None) -> tuple[Any, Any]:
    """Make a family's model that nobody trains, and its chat."""
    model, chat = model_and_chat(family, dtype, window)
    return model.requires_grad_(False), chat


def tower_calls(model: Any) -> list[int]:
    """Count, from now on, the images' passes through the tower."""
    core, calls = model.model, list[int]()
    tower = core.vision_tower if hasattr(core, "vision_tower") else core.visual
    tower.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def opened_anew(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Copy images as if their files had been opened again: the same object where it was the same."""
    copies = {id(image): copy(image) for image in images}
    return [copies[id(image)] for image in images]


@pytest.mark.parametrize(
    ("family", "window"),
    [(llava, None), (qwen2_5_vl, None), (qwen3_vl, None), (gemma3, 64)],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_replies_are_the_same_and_the_tower_sees_an_image_once(family, window):
    model, chat = frozen(family, window=window)
    images, questions = rows_of(chat)
    expected = reply(model, chat, images, questions, max_new_tokens=6, batch_size=5)
    kept = KeptFeatures(1.0)
    assert reply(model, chat, images, questions, max_new_tokens=6, batch_size=5, kept=kept) == expected
    assert len(kept.known) == len(chat.pictures)
    calls = tower_calls(model)
    again = opened_anew(images)
    assert reply(model, chat, again, questions, max_new_tokens=6, batch_size=5, kept=kept) == expected
    backwards = reply(model, chat, again[::-1], questions[::-1], max_new_tokens=6, batch_size=8, kept=kept)
    assert alike(backwards, expected[::-1])
    assert not calls


def test_an_image_that_is_known_is_not_processed_and_one_that_is_new_is(tiny_llava_next):
    model, chat = load_vlm(str(tiny_llava_next)).requires_grad_(False), Chat(model=str(tiny_llava_next))
    pictures = [noise(40, 20), noise(20, 40), noise(40, 40)]  # as many tiles as their shapes ask for
    images, questions = [one for one in pictures for _ in QUESTIONS], QUESTIONS * len(pictures)
    expected = reply(model, chat, images, questions, max_new_tokens=6, batch_size=16)
    kept = KeptFeatures(1.0)
    reply(model, chat, images[:8], questions[:8], max_new_tokens=6, batch_size=16, kept=kept)
    counts, calls = count_images(chat), tower_calls(model)
    got = reply(model, chat, opened_anew(images), questions, max_new_tokens=6, batch_size=16, kept=kept)
    assert got == expected
    assert counts == [1] and len(calls) == 1


class Looking(NumberChat):
    """Writes another prompt for an image that is all black, as no processor should."""

    @contextmanager
    def each_image_once(self) -> Iterator[dict[int, Any]]:
        self.known: dict[int, Any] | None = {}
        yield self.known
        self.known = None

    def inputs(self, images: Sequence[Image.Image], questions: Sequence[str]) -> dict[str, torch.Tensor]:
        known = getattr(self, "known", None)
        if known is None:  # what is tried plainly
            return super().inputs(images, questions)
        _, given = known.setdefault(id(images[0]), (images[0], super()._pixels([images[0].width - 1])))
        black = not given["pixel_values"].any()
        return super().inputs(images, [f"13 {one}" if black else one for one in questions]) | given


def test_an_image_on_whose_pixels_tokens_depend_is_processed_again():
    model, chat = frozen(llava)
    chat.__class__ = Looking
    images, questions = rows_of(chat)
    expected = reply(model, chat, images, questions, max_new_tokens=6, batch_size=8)
    kept = KeptFeatures(1.0)
    for _ in range(2):
        assert reply(model, chat, images, questions, max_new_tokens=6, batch_size=8, kept=kept) == expected
    assert [one.outline for one in kept.known.values()] == [None, None]


def test_features_of_other_numbers_are_not_taken():
    model, chat = frozen(llava, torch.float32)
    images, questions = rows_of(chat)
    kept = KeptFeatures(1.0)
    exact = reply(model, chat, images, questions, max_new_tokens=6, batch_size=8, kept=kept)
    with torch.autocast("cpu", torch.bfloat16):
        fresh = reply(model, chat, images, questions, max_new_tokens=6, batch_size=8)
        assert reply(model, chat, images, questions, max_new_tokens=6, batch_size=8, kept=kept) == fresh
    assert fresh != exact and len(kept.known) == 4
    assert reply(model, chat, images, questions, max_new_tokens=6, batch_size=8, kept=kept) == exact
    model.to(torch.bfloat16)
    reply(model, chat, images, questions, max_new_tokens=6, batch_size=8, kept=kept)
    assert len(kept.known) == 6


def test_base_and_policy_share_them_while_no_adapter_is_on_the_tower():
    model, chat = frozen(llava)
    images, questions = rows_of(chat)
    policy = spread(LoRA(r=4, alpha=8)(model)).eval()
    assert encoder_stays(policy)
    kept = KeptFeatures(1.0)
    with adapters_off(policy):
        base = reply(policy, chat, images, questions, max_new_tokens=6, batch_size=8, kept=kept)
    calls = tower_calls(model)
    adapted = reply(policy, chat, images, questions, max_new_tokens=6, batch_size=8, kept=kept)
    assert not calls and [one.text for one in adapted] != [one.text for one in base]
    assert adapted == reply(policy, chat, images, questions, max_new_tokens=6, batch_size=8)


def test_nothing_is_kept_of_a_tower_with_an_adapter_or_a_projector_in_training():
    model, chat = frozen(llava)
    images, questions = rows_of(chat)
    kept = KeptFeatures(1.0)
    model.model.multi_modal_projector.requires_grad_(True)
    reply(model, chat, images, questions, max_new_tokens=2, batch_size=8, kept=kept)
    policy = LoRA(r=4, target_modules=r".*(vision_tower|language_model).*\.(q_proj|v_proj)")(model)
    policy = spread(policy.requires_grad_(False)).eval()  # even where nobody trains it: it is on and off in turn
    assert not encoder_stays(policy)
    reply(policy, chat, images, questions, max_new_tokens=2, batch_size=8, kept=kept)
    assert not kept.known


def test_no_more_is_kept_than_there_is_room_for():
    model, chat = frozen(llava)
    images, questions = rows_of(chat)
    expected = reply(model, chat, images, questions, max_new_tokens=4, batch_size=8)
    one = 4 * 64 * 8  # bytes: tokens of an image, width, float64
    kept = KeptFeatures(1.5 * one / 2**30)
    for _ in range(2):
        assert reply(model, chat, images, questions, max_new_tokens=4, batch_size=8, kept=kept) == expected
    assert len(kept.known) == 1 and kept.room == one // 2


def test_a_picture_is_told_by_its_pixels():
    image = IMAGES[0]
    assert content(image) == content(copy(image))
    other = copy(image)
    other.putpixel((3, 5), (1, 2, 3))
    assert content(image) != content(other)
    assert content(Image.new("RGB", (2, 3))) != content(Image.new("RGB", (3, 2)))
    painted = Image.new("P", (2, 2))
    red = copy(painted)
    painted.putpalette([0, 0, 255])
    red.putpalette([255, 0, 0])
    assert content(painted) != content(red)


def test_an_outline_takes_no_memory_and_keeps_what_is_small():
    grid = torch.tensor([[1, 4, 6]])
    drawn = outline([torch.rand(3, 64, 64), (grid, "row")])
    assert drawn[0].shape == (3, 64, 64) and drawn[0].untyped_storage().nbytes() == 4
    assert drawn[1] == (grid, "row")
