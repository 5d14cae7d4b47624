"""Rows that share the beginning of their prompts say what they say alone, in nine families of models."""

from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from functools import wraps
from typing import Any

import pytest
import torch
from dpo.nine import IMAGE, NINE, _kinds, gemma3, llava, paligemma, qwen2_vl
from vlm.numbers import NumberChat

from synthalign.vlm import KeyedSampler, replies, reply
from synthalign.vlm.branches import Branches
from synthalign.vlm.decode import decode
from synthalign.vlm.tried import why_not_shared

QUESTIONS = ["21 22 30 31", "21 22 40", "21 22 50 51 52 53", "60"]


def model_and_chat(family: Any, dtype: torch.dtype = torch.float64, window: int | None = None) -> tuple[Any, Any]:
    """Make a family's model, wider than initialised: a wrong position or mask must show."""
    torch.manual_seed(0)
    model, images, tokens = family()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    if window is not None:
        for layer in model.model.language_model.layers:
            if layer.self_attn.sliding_window:
                layer.self_attn.sliding_window = window
        model.config.text_config.sliding_window = window
    model.generation_config.eos_token_id = None
    return model.to(dtype).eval(), NumberChat(family.__name__, images, tokens, dtype)


def rows_of(chat: NumberChat, samples: int = 1) -> tuple[list[Any], list[str]]:
    """Ask every question about every image, so many times."""
    rows = [(image, question) for question in QUESTIONS for image in chat.pictures for _ in range(samples)]
    images, questions = zip(*rows, strict=True)
    return list(images), list(questions)


def alone(model: Any, chat: NumberChat, image: Any, question: str, steps: int, **settings: Any) -> Any:
    """One row by plain generate: its tokens, and the logits (steps, V) that they come from."""
    inputs = chat.inputs([image], [question])
    with torch.no_grad():
        out = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=steps,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
            **settings,
        )
    return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), torch.cat(out.logits)


def spoken(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


def plainly(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count, from now on, the batches that are generated the plain way."""
    sizes, real = [], replies.generate

    def counted(model: Any, inputs: Any, *others: Any, **settings: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        return real(model, inputs, *others, **settings)

    monkeypatch.setattr(replies, "generate", counted)
    return sizes


EACH = [*((family, None) for family in NINE), (gemma3, 64)]
SHARING = [(family, window) for family, window in EACH if family is not gemma3 or window]


@pytest.mark.parametrize(("family", "window"), EACH, ids=[f"{family.__name__}-{window}" for family, window in EACH])
def test_greedy_replies_of_nine_families_are_those_of_plain_generate(family, window, monkeypatch, capsys):
    model, chat = model_and_chat(family, window=window)
    images, questions = rows_of(chat, 2)
    sizes = plainly(monkeypatch)
    got = reply(model, chat, images, questions, max_new_tokens=12, batch_size=5)
    told = capsys.readouterr().err
    if family is gemma3 and window is None:
        assert sum(sizes) == len(images)
        assert told.count("\n") == 1 and "gemma3 wrong (its prompts are longer than its sliding window of 8" in told
    else:
        assert not sizes and not told
    for one, image, question in zip(got, images, questions, strict=True):
        tokens, logits = alone(model, chat, image, question, 12)
        assert one.text == spoken(tokens)
        assert one.yes_margin == pytest.approx(float(logits[0, 7] - logits[0, 9]), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("family", "window"), SHARING, ids=[family.__name__ for family, _ in SHARING])
def test_logits_of_every_step_are_those_of_plain_generate(family, window, dtype):
    model, chat = model_and_chat(family, dtype, window)
    images, questions = rows_of(chat)
    expected = [alone(model, chat, *row, 6) for row in zip(images, questions, strict=True)]
    seen: list[torch.Tensor] = []

    def follow(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        seen.append(logits)
        return torch.tensor([expected[row][0][len(seen) - 1] for row in rows])

    with torch.no_grad():
        started = Branches(model, chat, images, questions).start(range(len(images)))
        decode(model, started, follow, set(), max_new_tokens=6)
    got = torch.stack(seen, 1)
    wanted = torch.stack([logits for _, logits in expected]).float()
    torch.testing.assert_close(got, wanted, rtol=0, atol=5e-6 if dtype == torch.float64 else 2e-4)


class AnywhereChat(NumberChat):
    """Puts the image behind a question that begins with 60, before one with 21, and into any other's prompt."""

    def _row(self, image: int, words: list[int]) -> dict[str, torch.Tensor]:
        before, behind = ([], words) if words[0] == 21 else (words, [] if words[0] == 60 else [40, 41])
        placed = [IMAGE] * self.fills[image]
        placed = [292, *placed, 293] if "image_grid_thw" in self.given else placed
        ids = torch.tensor([1, 11, *before, *placed, *behind])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | _kinds(self.name, ids)


@pytest.mark.parametrize("batch_size", [3, 100])
@pytest.mark.parametrize("family", [llava, qwen2_vl, paligemma], ids=lambda family: family.__name__)
def test_prompts_that_share_little_or_end_with_their_image_are_read_beside_others(family, batch_size, monkeypatch):
    model, chat = model_and_chat(family)
    chat.__class__ = AnywhereChat
    first, second = chat.pictures[:2]
    asked = ["60", "60 61", "60", "21 22", "21 22 23 24", "21 22", "30", "31 32"]
    images = [first] * 3 + [second] * 3 + [first, second]
    sizes = plainly(monkeypatch)
    got = reply(model, chat, images, asked, max_new_tokens=6, batch_size=batch_size)
    assert not sizes
    wanted = [alone(model, chat, *row, 6)[0] for row in zip(images, asked, strict=True)]
    assert [one.text for one in got] == [spoken(tokens) for tokens in wanted]
    got = reply(model, chat, images[:6], asked[:6], max_new_tokens=6, batch_size=batch_size)
    assert [one.text for one in got] == [spoken(tokens) for tokens in wanted[:6]]


def test_an_image_is_encoded_once_and_a_prompts_beginning_read_once():
    model, chat = model_and_chat(llava)
    images, questions = rows_of(chat, 3)
    calls: Counter[str] = Counter()
    model.model.vision_tower.register_forward_pre_hook(lambda *_: calls.update(tower=1))
    read: list[int] = []
    model.model.language_model.embed_tokens.register_forward_hook(lambda _, args, __: read.append(args[0].numel()))
    reply(model, chat, images, questions, max_new_tokens=3, batch_size=100)  # tried here, on two rows
    calls.clear()
    read.clear()
    reply(model, chat, images, questions, max_new_tokens=3, batch_size=100)
    assert calls["tower"] == 1
    # two stems of 3 tokens and an image of 4, which all questions begin with; 4 questions of 6 tokens at most, behind
    # each; two steps of all rows
    assert read == [2 * 7, 8 * 6, len(images), len(images)]


def test_an_image_whose_rows_fall_into_several_batches_is_encoded_once():
    model, chat = model_and_chat(llava)
    images, questions = rows_of(chat, 3)
    reply(model, chat, images, questions, max_new_tokens=2, batch_size=5)
    encoded: list[int] = []
    model.model.vision_tower.register_forward_pre_hook(lambda _, args, kwargs: encoded.append(1), with_kwargs=True)
    reply(model, chat, images, questions, max_new_tokens=2, batch_size=5)
    assert len(encoded) == 2


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_a_sampled_row_depends_on_its_seed_alone(batch_size):
    model, chat = model_and_chat(qwen2_vl)
    images, questions = rows_of(chat, 3)
    rows = list(zip(images, questions, range(len(images)), strict=True))

    def ask(rows: Sequence[Any], batch_size: int) -> list[str]:
        some, asked, seeds = zip(*rows, strict=True)
        sampler = KeyedSampler(seeds)
        said = reply(model, chat, some, asked, max_new_tokens=8, batch_size=batch_size, sampler=sampler)
        return [one.text for one in said]

    expected = ask(rows, 24)
    assert ask(rows[::-1], batch_size) == expected[::-1]
    assert ask(rows[5:6], 1) == expected[5:6]
    assert len(set(expected)) > 20


def test_sampled_tokens_follow_the_models_own_probabilities_at_first_and_later():
    model, chat = model_and_chat(llava)
    n, cold, image = 4000, 0.15, chat.pictures[0]
    _, logits = alone(model, chat, image, "60", 1)
    first = torch.softmax(logits[0] / cold, -1)
    sampler = KeyedSampler(range(n), temperature=cold)
    said = reply(model, chat, [image] * n, ["60"] * n, max_new_tokens=2, batch_size=n, sampler=sampler)
    pairs = [tuple(map(int, one.text.split())) for one in said]
    assert chi_square(Counter(one for one, _ in pairs), first) < 0
    common = Counter(one for one, _ in pairs).most_common(1)[0][0]
    _, logits = alone(model, chat, image, f"60 {common}", 1)
    assert chi_square(Counter(two for one, two in pairs if one == common), torch.softmax(logits[0] / cold, -1)) < 0


def chi_square(counts: Counter[int], probs: torch.Tensor) -> float:
    """By how much the statistic exceeds its mean and four standard deviations; tokens under five expected are one."""
    n = counts.total()
    large = [token for token, p in enumerate(probs.tolist()) if n * p >= 5]
    cells = [(counts[token], n * float(probs[token])) for token in large]
    cells.append((n - sum(got for got, _ in cells), n - sum(wanted for _, wanted in cells)))
    statistic = sum((got - wanted) ** 2 / wanted for got, wanted in cells)
    freedom = len(cells) - 1
    assert freedom > 2
    return statistic - freedom - 4 * (2 * freedom) ** 0.5


def test_rows_that_end_leave_the_batch_and_the_others_go_on_as_before():
    model, chat = model_and_chat(llava)
    images, questions = rows_of(chat)
    full = [alone(model, chat, *row, 16)[0] for row in zip(images, questions, strict=True)]
    stops = [token for token, _ in Counter(token for row in full for token in row).most_common(2)]
    model.generation_config.eos_token_id = stops
    sizes: list[int] = []
    got = reply(model, chat, images, questions, max_new_tokens=16, batch_size=100)
    model.register_forward_pre_hook(lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    assert reply(model, chat, images, questions, max_new_tokens=16, batch_size=100) == got
    for one, row in zip(got, full, strict=True):
        length = next((n + 1 for n, token in enumerate(row) if token in stops), None)
        assert one.text == spoken(row[:length])
        assert one.truncated == (length is None)
    assert len({one.truncated for one in got}) == 2 or all(not one.truncated for one in got)
    assert sorted(sizes[2:], reverse=True) == sizes[2:] and sizes[-1] < len(images)


PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 6},
    {"suppress_tokens": [100, 101, 102]},
    {"repetition_penalty": 1.3, "bad_words_ids": [[50, 51], [60]]},
]


@pytest.mark.parametrize("asked", PENALTIES, ids=lambda asked: "+".join(asked))
def test_what_the_generation_config_asks_for_is_done_row_by_row(asked, monkeypatch):
    model, chat = model_and_chat(llava)
    images, questions = rows_of(chat)
    before = [alone(model, chat, *row, 8)[0] for row in zip(images, questions, strict=True)]
    stop = before[0][2]
    model.generation_config.eos_token_id = stop
    for name, value in asked.items():
        setattr(model.generation_config, name, value)
    sizes = plainly(monkeypatch)
    got = reply(model, chat, images, questions, max_new_tokens=8, batch_size=5)
    assert not sizes
    expected = [alone(model, chat, *row, 8)[0] for row in zip(images, questions, strict=True)]
    assert [one.text for one in got] == [spoken(tokens) for tokens in expected]
    if "suppress_tokens" not in asked:
        assert expected != before


@pytest.mark.parametrize("asked", [{"guidance_scale": 1.5}, {"max_time": 1000.0}], ids=str)
def test_what_cannot_be_done_row_by_row_takes_the_plain_way(asked, monkeypatch, capsys):
    model, chat = model_and_chat(llava)
    for name, value in asked.items():
        setattr(model.generation_config, name, value)
    sizes = plainly(monkeypatch)
    images, questions = rows_of(chat)
    reply(model, chat, images[:2], questions[:2], max_new_tokens=2, batch_size=5)
    assert sizes == [2]
    assert "its generation config asks for" in capsys.readouterr().err


def softcapped() -> tuple[Any, Any]:
    model, chat = model_and_chat(llava)
    model.set_attn_implementation("eager")
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        own = attention.forward
        attention.forward = lambda *args, own=own, **kwargs: own(*args, softcap=20.0, **kwargs)
    return model, chat


def displaced() -> tuple[Any, Any]:
    """A model that counts positions in a way of its own, which nobody told us."""
    model, chat = model_and_chat(llava)
    own = model.model.language_model.forward

    def forward(position_ids=None, **kwargs):
        return own(position_ids=None if position_ids is None else 2 * position_ids, **kwargs)

    model.model.language_model.forward = forward
    return model, chat


def failing() -> tuple[Any, Any]:
    model, chat = model_and_chat(llava)
    own = model.forward

    @wraps(own)
    def forward(*args, shared=None, **kwargs):
        if shared is not None:
            raise TypeError("no such keyword\nin this model")
        return own(*args, **kwargs)

    model.forward = forward
    return model, chat


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (softcapped, "its attention takes softcap"),
        (displaced, "its log-probs are off by "),
        (failing, "its forward fails with TypeError: no such keyword)"),
    ],
)
def test_a_model_that_sharing_would_get_wrong_is_told_once_and_read_plainly(
    make: Callable[[], tuple[Any, Any]], reason, monkeypatch, capsys
):
    model, chat = make()
    images, questions = rows_of(chat)
    sizes = plainly(monkeypatch)
    for _ in range(2):
        reply(model, chat, images, questions, max_new_tokens=3, batch_size=4)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"replies: sharing prompts would get llava wrong ({reason}" in told
    assert sizes == [4, 4] * 2


def test_images_that_a_sequence_opens_anew_are_told_apart():
    model, chat = model_and_chat(llava)
    images, questions = rows_of(chat)

    class Opened(Sequence):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return copy(images[index])

    got = reply(model, chat, Opened(), questions, max_new_tokens=4, batch_size=5)
    assert got == reply(model, chat, images, questions, max_new_tokens=4, batch_size=5)


def test_a_model_whose_layers_remember_is_not_tried():
    model, chat = model_and_chat(llava)
    images, questions = rows_of(chat)
    model.config.text_config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    assert why_not_shared(model, chat, images, questions, max_new_tokens=4) == "it has layers of linear_attention"


def test_a_reply_that_may_outgrow_the_window_is_read_plainly(monkeypatch, capsys):
    model, chat = model_and_chat(gemma3, window=24)
    images, questions = rows_of(chat)
    sizes = plainly(monkeypatch)
    short = reply(model, chat, images, questions, max_new_tokens=4, batch_size=8)
    assert not sizes
    long = reply(model, chat, images, questions, max_new_tokens=20, batch_size=8)
    assert sizes == [8]
    assert "more than its sliding window of 24" in capsys.readouterr().err
    for one, two, image, question in zip(short, long, images, questions, strict=True):
        tokens = alone(model, chat, image, question, 20)[0]
        assert (one.text, two.text) == (spoken(tokens[:4]), spoken(tokens))


@pytest.mark.parametrize("family", [llava, qwen2_vl], ids=["llava", "qwen2_vl"])
def test_an_adapter_counts_while_it_is_on(family, monkeypatch):
    from dpo.adapters import spread

    from synthalign.dpo.policy import LoRA, adapters_off

    model, chat = model_and_chat(family)
    images, questions = rows_of(chat)
    plain = reply(model, chat, images, questions, max_new_tokens=6, batch_size=8)
    policy = spread(LoRA(r=4, alpha=8)(model.requires_grad_(False))).eval()
    sizes = plainly(monkeypatch)
    adapted = reply(policy, chat, images, questions, max_new_tokens=6, batch_size=8)
    with adapters_off(policy):
        assert [one.text for one in reply(policy, chat, images, questions, max_new_tokens=6, batch_size=8)] == [
            one.text for one in plain
        ]
    assert not sizes
    assert [one.text for one in adapted] == [
        spoken(alone(policy, chat, *row, 6)[0]) for row in zip(images, questions, strict=True)
    ]
    assert [one.text for one in adapted] != [one.text for one in plain]


def test_trying_a_model_tells_nothing_of_one_that_is_carried():
    model, chat = model_and_chat(llava, torch.float32)
    images, questions = rows_of(chat)
    with torch.no_grad():
        assert why_not_shared(model, chat, images, questions, max_new_tokens=4) is None
        assert why_not_shared(model, chat, images[:1], questions[:1], max_new_tokens=4) is None


def test_under_autocast_rows_share_too(monkeypatch, capsys):
    model, chat = model_and_chat(llava, torch.float32)
    images, questions = rows_of(chat)
    sizes = plainly(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        got = reply(model, chat, images, questions, max_new_tokens=4, batch_size=8)
        expected = [alone(model, chat, *row, 1)[1][0] for row in zip(images, questions, strict=True)]
    assert not sizes and not capsys.readouterr().err
    for one, logits in zip(got, expected, strict=True):
        assert one.yes_margin == pytest.approx(float(logits[7].float() - logits[9].float()), abs=0.1)


def test_in_half_precision_rows_share_too(monkeypatch, capsys):
    model, chat = model_and_chat(qwen2_vl, torch.bfloat16)
    images, questions = rows_of(chat)
    sizes = plainly(monkeypatch)
    assert len(reply(model, chat, images, questions, max_new_tokens=4, batch_size=8)) == len(images)
    assert not sizes and not capsys.readouterr().err


def test_a_sharded_model_is_not_tried():
    """Its ranks would have to take every step together."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, chat = model_and_chat(llava, torch.float32)
    images, questions = rows_of(chat)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(model.model.language_model, mesh=init_device_mesh("cpu", (1,)))
        assert why_not_shared(model, chat, images, questions, max_new_tokens=4) == "its weights are sharded"
    finally:
        distributed.destroy_process_group()
