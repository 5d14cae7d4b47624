"""Whether sharing carries a model exactly: tried on two rows before it is trusted."""

import sys
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from PIL import Image
from torch import Tensor

from synthalign.batching import in_batches, is_out_of_memory
from synthalign.vlm.attention import NotCarriedError
from synthalign.vlm.branches import Branches
from synthalign.vlm.chat import Chat
from synthalign.vlm.choice import Choice
from synthalign.vlm.decode import decode
from synthalign.vlm.families import LAYERS, base_of, decoder_of, takes_features
from synthalign.vlm.plain import GREEDY, to_model

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.005}
"""How far a token's log-prob may be from the plain way's in the mean, nats. Nine tiny random models are off by 0, 3e-7,
3e-3 and 4e-4; with their positions trebled by 0.017 to 0.2, and trained models mind far more."""

ROUNDINGS = 4
"""Where that is exceeded: how many times as far as the model's own log-probs are when rows are read together."""

STEPS = 3
"""Tokens of a trial: the first from the prompt's own forward, the others from the cache's."""

_reasons: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
_told: WeakSet[Any] = WeakSet()


def tolerance(network: Any) -> float:  # noqa: ANN401
    """Return how far log-probs of a model may be off for being computed in another order, nats."""
    base = base_of(network)
    if getattr(base, "is_loaded_in_8bit", False):  # how its products are rounded depends on all rows of a batch
        return TOLERANCE[torch.bfloat16]
    weight = base.get_input_embeddings().weight
    device = weight.device.type
    return TOLERANCE[torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype]


def shares(
    network: Any,  # noqa: ANN401
    chat: Chat,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    max_new_tokens: int,
) -> bool:
    """Say whether rows may share their prompts, trying it at a model's first call; warn if not."""
    if network not in _reasons:

        def work(rows: Sequence[int]) -> list[str | None]:
            some, asked = [images[row] for row in rows], [questions[row] for row in rows]
            return [why_not_shared(network, chat, some, asked, max_new_tokens=max_new_tokens)] * len(rows)

        reasons = in_batches(_two(images, questions), 2, work, f"replies of {chat.model}")
        _reasons[network] = next(filter(None, reasons), None)
        if reason := _reasons[network]:
            warn(network, chat, reason)
    return _reasons[network] is None


def warn(network: Any, chat: Chat, reason: str) -> None:  # noqa: ANN401
    """Say on the terminal, once for a model, why its rows do not share their prompts."""
    if network not in _told:
        _told.add(network)
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
            return
        sys.stderr.write(
            f"replies: sharing prompts would get {chat.model} wrong ({reason}); every row reads its own instead: "
            "as exact, and slower\n"
        )


def why_not_shared(
    network: Any,  # noqa: ANN401
    chat: Chat,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    max_new_tokens: int,
) -> str | None:
    """Compare the logits of two rows' first tokens with those of the model's own ``generate``; say what differs."""
    try:
        _check_make_up(network)
    except Exception as error:  # any model may be given, and fails in its own way
        return _reason(error)
    rows = _two(images, questions)
    images, questions = [images[row] for row in rows], [questions[row] for row in rows]
    # What fails here is no fault of sharing.
    plain = [_plain(network, chat, *row) for row in zip(images, questions, strict=True)]
    try:
        shared = _shared(network, chat, images, questions, plain, max_new_tokens)
        worst = max(_off(logits, other) for (logits, _), other in zip(plain, shared, strict=True))
        limit = tolerance(network)
        if worst > limit:  # some models round more coarsely than others of their type
            limit = max(limit, ROUNDINGS * _rounding(network, chat, images, questions, plain))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return _reason(error)
    return None if worst <= limit else f"its log-probs are off by {worst:.2g} nats"


def _reason(error: Exception) -> str:
    if isinstance(error, NotCarriedError):
        return str(error)
    return f"its forward fails with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _check_make_up(network: Any) -> None:  # noqa: ANN401
    base = base_of(network)
    config = base.config.get_text_config()
    if any(type(parameter).__name__ == "DTensor" for parameter in network.parameters()) or any(
        type(part).__name__ == "FullyShardedDataParallel" for part in network.modules()
    ):
        raise NotCarriedError("its weights are sharded")
    if not takes_features(network):
        raise NotCarriedError("it takes no encoded images")
    if strange := set(getattr(config, "layer_types", None) or ()) - LAYERS:
        raise NotCarriedError(f"it has layers of {min(strange)}")


def window_of(network: Any) -> float:  # noqa: ANN401
    """Return how many tokens back the model's narrowest layer sees."""
    decoder = decoder_of(network)
    parts = [getattr(layer, "self_attn", None) for layer in getattr(decoder, "layers", ())]
    windows = [getattr(part, "sliding_window", None) for part in parts]
    kinds = getattr(decoder.config, "layer_types", None)
    if kinds is None or "sliding_attention" in kinds:
        windows.append(getattr(decoder.config, "sliding_window", None))
    return min((window for window in windows if window), default=float("inf"))


def _two(images: Sequence[Image.Image], questions: Sequence[str]) -> list[int]:
    """Choose two rows: two questions about one image, if there are."""
    of_image: dict[int, dict[str, int]] = {}
    for row, (image, question) in enumerate(zip(images, questions, strict=True)):
        of_image.setdefault(id(image), {}).setdefault(question, row)
    most = max(of_image.values(), key=len)
    rows = [*most.values()] if len(most) > 1 else [next(iter(one.values())) for one in of_image.values()]
    return rows[:2]


def _plain(network: Any, chat: Chat, image: Image.Image, question: str) -> tuple[Tensor, list[int]]:  # noqa: ANN401
    """Return the logits (steps, V) and tokens that the model's own way gives a row."""
    inputs = to_model(network, chat.inputs([image], [question]))
    output = network.generate(
        **inputs,
        **GREEDY,
        max_new_tokens=STEPS,
        min_new_tokens=None,
        min_length=0,
        pad_token_id=chat.tokenizer.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(output.logits).float(), output.sequences[0, inputs["input_ids"].shape[1] :].tolist()


def _shared(
    network: Any,  # noqa: ANN401
    chat: Chat,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    plain: Sequence[tuple[Tensor, list[int]]],
    max_new_tokens: int,
) -> list[Tensor]:
    """Return the logits (steps, V) that sharing gives each row if it says what it says the plain way."""
    logits: list[list[Tensor]] = [[] for _ in plain]

    def follow(seen: Tensor, rows: Sequence[int]) -> Tensor:
        for row, one in zip(rows, seen, strict=True):
            logits[row].append(one)
        step = len(logits[rows[0]]) - 1
        given = [tokens[step] if step < len(tokens) else tokens[-1] for tokens in (plain[row][1] for row in rows)]
        return torch.tensor(given, device=seen.device)

    branches, rows = Branches(network, chat, images, questions), range(len(images))
    prompts = [prompt.ids for prompt in branches.prompts(rows)]
    pad = chat.tokenizer.pad_token_id
    longest = max(len(prompt) for prompt in prompts) + STEPS
    if longest > (window := window_of(network)):
        raise NotCarriedError(f"its prompts are longer than its sliding window of {window} tokens")
    Choice(
        network, prompts, None, None, max_new_tokens=max_new_tokens, pad_token_id=pad
    )  # or what it asks for is refused
    started = branches.start(rows)
    decode(network, started, follow, set(), max_new_tokens=max(len(tokens) for _, tokens in plain))
    return [torch.stack(one) for one in logits]


def _rounding(
    network: Any,  # noqa: ANN401
    chat: Chat,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    plain: Sequence[tuple[Tensor, list[int]]],
) -> float:
    """Return by how much the model's own log-probs of first tokens differ when rows are read together, nats."""
    inputs = to_model(network, chat.inputs([*images, *images], [*questions, *questions]))
    output = network.generate(
        **inputs,
        **GREEDY,
        max_new_tokens=1,
        pad_token_id=chat.tokenizer.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    together = output.logits[0].float()
    return max(_off(logits[:1], one[None]) for (logits, _), one in zip(plain, together, strict=False))


def _off(logits: Tensor, other: Tensor) -> float:
    """Return by how much log-probs differ in the mean at the step where they do so most, nats."""
    other = other[: len(logits)]
    difference = logits.log_softmax(-1) - other.log_softmax(-1)
    finite = torch.isfinite(logits) | torch.isfinite(other)
    return float(difference.masked_fill(~finite, 0).abs().mean(-1).max())
