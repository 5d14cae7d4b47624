"""The pairs a plan reckons with: those of the run where they exist, otherwise as many and as long as assumed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synthalign.datamodules import SyntheticPreferenceDataModule
from synthalign.datamodules.filling import rounded
from synthalign.dpo.batch import PreferenceBatch, collate
from synthalign.planning.batches import Lengths, made_up, spoken, tokens_of
from synthalign.vlm import Chat
from synthalign.vlm.processors import load_processor

ASSUMED_PAIRS = 10_000
LONGEST = 2**17
"""Tokens that a question or a response may have."""


class Sized(NamedTuple):
    """A batch and its tokens: of prompts, their images' included, and of both responses.

    Where the run keeps pairs of one image together, the tokens of that image count once.
    """

    batch: PreferenceBatch
    tokens: int


class Pairs(NamedTuple):
    """What an epoch trains on, and batches of it."""

    source: str  # where they come from
    num_pairs: int  # of all devices
    num_images: int  # that all devices encode, each once in a batch
    num_batches: int  # of one device
    tokens: int  # of all devices
    largest: Sized  # has the most tokens
    typical: Sized  # has about the mean
    longest: Sized  # the pair with the most tokens, by itself


def of_run(data: SyntheticPreferenceDataModule, world_size: int) -> Pairs | None:
    """Read the run's own pairs, if they are made or there already; None if not.

    Raises:
        ValueError: They are too few for so many devices, or none is fit for training.
    """
    if data.synthesis is not None:
        if not data.synthesis.table.is_file():
            return None
        data.setup("validate")
    elif data.pairs is None or (not Path(data.pairs).exists() and _looks_like_path(data.pairs)):
        return None
    else:
        data.setup("fit")
    steps = data.steps(world_size)(0)
    dataset: Any = data.train_set
    batches = [batch for step in steps for batch in step]

    def sized(rows: Sequence[int]) -> Sized:
        assert data.chat is not None
        return Sized(collate([dataset[row] for row in rows], data.chat), tokens(rows))

    def tokens(rows: Sequence[int]) -> int:
        return data.batch_limit.tokens(dataset.loads[row] for row in rows)

    sizes = [tokens(batch) for batch in batches]
    mean = sum(sizes) / len(sizes)
    most, middle = max(batches, key=tokens), min(batches, key=lambda batch: abs(tokens(batch) - mean))
    largest = sized(most)
    return Pairs(
        source=f"of {len(dataset)} in {data.pairs if data.synthesis is None else data.synthesis.table}",
        num_pairs=sum(len(batch) for batch in batches),
        num_images=sum(len({dataset.loads[row].image for row in batch}) for batch in batches),
        num_batches=len(steps),
        tokens=sum(sizes),
        largest=largest,
        typical=largest if tokens(middle) == largest.tokens else sized(middle),
        longest=sized([max(range(len(dataset)), key=lambda row: dataset.loads[row].tokens)]),
    )


def assumed(
    data: SyntheticPreferenceDataModule,
    config: Any,  # noqa: ANN401 - a configuration of transformers
    lengths: Lengths,
    *,
    num_pairs: int | None,
    image_size: int,
    world_size: int,
) -> Pairs:
    """Make pairs up, all of these lengths and each about an image of its own.

    Args:
        data: Says how many go into a batch.
        config: Of the policy.
        lengths: Of every pair.
        num_pairs: How many; by default one for each prompt, or ASSUMED_PAIRS.
        image_size: Sides of the images, px.
        world_size: Number of devices.

    Raises:
        ValueError: They are too few for so many devices, too long for the run, or the policy's processor or chat
            template refuses them.
    """
    count, why = num_pairs, "as asked"
    if count is None and data.synthesis is not None and Path(data.synthesis.prompts).is_file():
        lines = Path(data.synthesis.prompts).read_text(encoding="utf-8").splitlines()
        count, why = sum(bool(line.strip()) for line in lines), "one for each prompt; none are made yet"
    elif count is None:
        count, why = ASSUMED_PAIRS, "assumed; none are made yet"
    assert data.chat is not None
    missing = _why_no_processor(data.chat)

    def batch(size: int) -> Sized:
        assert data.chat is not None
        every = [lengths] * size
        made = spoken(data.chat, every, (image_size, image_size)) if missing is None else made_up(config, every)
        return Sized(made, tokens_of(made))

    limit, one = data.batch_limit, batch(1)
    prompt, longer = one.tokens - lengths.chosen - lengths.rejected, max(lengths.chosen, lengths.rejected)
    if prompt + longer > (most := data.max_length or data.chat.max_length):
        raise ValueError(
            f"a prompt of {prompt} tokens with its image and a response of {longer} are more than {most}: fit would "
            "drop such pairs; see --tokens and data.init_args.max_length"
        )
    size = limit.batch_size if limit.max_tokens is None else max(1, limit.max_tokens // rounded(one.tokens))
    batches = -(-count // size)
    if limit.max_tokens is None and not limit.shares_images:
        steps = batches // world_size  # what is left over is left out
    else:  # batches are split until all devices have one
        steps = -(-batches // world_size) if count >= world_size else 0
    if not steps:
        raise ValueError(
            f"{count} pairs are too few for {world_size} devices: some would have nothing to train on; lower "
            "trainer.devices, or what a batch holds"
        )
    largest = batch(min(size, count)) if size > 1 else one
    used = min(count, steps * world_size * size)
    source = (
        f"{why}: prompts of {prompt} tokens with their image, responses of {lengths.chosen} and "
        f"{lengths.rejected} tokens"
    )
    if missing is not None:
        source += f"; reckoned without the policy's processor: {missing}"
    return Pairs(
        source=source,
        num_pairs=used,
        num_images=used,
        num_batches=steps,
        tokens=used * one.tokens,
        largest=largest,
        typical=largest,
        longest=one,
    )


def _why_no_processor(chat: Chat) -> str | None:
    """Say why the policy's processor cannot be loaded, if so: its configuration alone may be there so far."""
    try:
        load_processor(chat.model, revision=chat.revision)
    except ValueError as error:
        return str(error)
    return None


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or bool(Path(name).suffix)


def parse_lengths(given: Sequence[int]) -> Lengths:
    """Check and name three lengths."""
    if min(given) < 1 or max(given) > LONGEST:
        raise ValueError(f"--tokens takes question, chosen and rejected, each from 1 to {LONGEST}, got {list(given)}")
    return Lengths(*given)
