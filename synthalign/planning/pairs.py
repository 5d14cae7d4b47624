"""The pairs a plan reckons with: those of the run where they exist, otherwise as many and as long as assumed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synthalign.datamodules import SyntheticPreferenceDataModule
from synthalign.dpo.batch import PreferenceBatch, collate
from synthalign.planning.batches import Lengths, made_up, spoken, tokens_of

ASSUMED_PAIRS = 10_000


class Pairs(NamedTuple):
    """An epoch's batches on one device, and two of them: tokens count prompts, images' included, and both responses."""

    said: str  # where they come from
    num_pairs: int
    num_batches: int  # of one device
    tokens: int  # of all devices, an epoch
    largest: PreferenceBatch  # has the most tokens
    typical: PreferenceBatch  # has about the mean


def of_run(data: SyntheticPreferenceDataModule, world_size: int) -> Pairs | None:
    """Read the run's own pairs, if they are made or there already; None if not."""
    if data.synthesis is not None:
        if not data.synthesis.table.is_file():
            return None
        data.setup("validate")
    elif data.pairs is None or (not Path(data.pairs).exists() and _looks_like_path(data.pairs)):
        return None
    else:
        data.setup("fit")
    loader = data.train_dataloader()
    dataset: Any = data.train_set
    batches = list(loader.batch_sampler)
    loads = [data.batch_limit.tokens([dataset.loads[row] for row in batch]) for batch in batches]
    mean = sum(loads) / len(loads)

    def take(place: int) -> PreferenceBatch:
        assert data.chat is not None
        return collate([dataset[row] for row in batches[place]], data.chat)

    return Pairs(
        said=f"{len(dataset)} pairs of {data.pairs if data.synthesis is None else data.synthesis.table}",
        num_pairs=len(dataset),
        num_batches=len(batches) // world_size,
        tokens=sum(loads),
        largest=take(max(range(len(loads)), key=loads.__getitem__)),
        typical=take(min(range(len(loads)), key=lambda place: abs(loads[place] - mean))),
    )


def assumed(
    data: SyntheticPreferenceDataModule,
    config: Any,  # noqa: ANN401 - a configuration of transformers
    lengths: Lengths,
    *,
    num_pairs: int | None,
    image_size: tuple[int, int],
    world_size: int,
) -> Pairs:
    """Make pairs up, all of these lengths and each about an image of its own."""
    count, why = num_pairs, "as asked"
    if count is None and data.synthesis is not None and Path(data.synthesis.prompts).is_file():
        lines = Path(data.synthesis.prompts).read_text(encoding="utf-8").splitlines()
        count, why = sum(bool(line.strip()) for line in lines), "one for each prompt"
    elif count is None:
        count, why = ASSUMED_PAIRS, "assumed"

    def batch(size: int) -> PreferenceBatch:
        try:
            assert data.chat is not None
            return spoken(data.chat, [lengths] * size, image_size)
        except ValueError:
            return made_up(config, [lengths] * size)

    limit, one = data.batch_limit, tokens_of(batch(1))
    size = limit.batch_size if limit.max_tokens is None else max(1, limit.max_tokens // one)
    most = batch(min(size, count))
    prompt = one - lengths.chosen - lengths.rejected
    responses = f"responses of {lengths.chosen} and {lengths.rejected} tokens"
    return Pairs(
        said=f"{count} pairs ({why}; none are made yet), prompts of {prompt} tokens with their image, {responses}",
        num_pairs=count,
        num_batches=max(1, -(-count // size) // world_size),
        tokens=count * one,
        largest=most,
        typical=most,
    )


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or bool(Path(name).suffix)


def parse_lengths(given: Sequence[int]) -> Lengths:
    """Check and name three lengths."""
    if len(given) != 3 or min(given) < 1:
        raise ValueError(f"--tokens takes question, chosen and rejected, each at least 1, got {list(given)}")
    return Lengths(*given)
