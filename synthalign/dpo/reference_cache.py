"""Reference log-probs on disk: computed once, whole or absent, and found by what made them.

A cache's folder is named by its recipe (weights, dtype, layout, …), so that a change of it never meets an old value; a
row by its pair's id and fingerprint, so that a pair that is new or has changed is computed, and no other. Batches are
fixed by the pairs, not by rank or by when a preparation was killed, and so are the values, to the last bit.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tqdm import tqdm

from synthalign.dpo.policy import adapters_off, trained_without_adapters
from synthalign.store import Landing, Shard, digest, shards_of, sign_of_life, wait_for
from synthalign.types import PairLogps

CACHE_VERSION = 1
"""Goes into every cache's address: raise it when the same recipe would give other values, or other columns."""

COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("fingerprint", pa.string()),
        ("chosen", pa.float64()),  # holds float32 and less exactly
        ("rejected", pa.float64()),
        ("chosen_tokens", pa.int64()),
        ("rejected_tokens", pa.int64()),
        ("dtype", pa.string()),  # of the log-probs, as they were
        ("check", pa.string()),  # digest of the row: parquet notices most damage, but not all
    ]
)

Pair = tuple[str, str]
"""Id of a pair, and the fingerprint of all that its log-probs depend on: image, question and responses."""

Row = dict[str, Any]
"""Of a shard: the columns by name."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a reference may need before the first step.

    Args:
        recipe: What makes the values: weights by content, dtype, layout and its version, template, …; JSON-able.
        pairs: Every pair of training and validation.
        batches: Given blocks of places in ``pairs``, returns their pairs as batches with ``ids``; block after block,
            no batch crossing from one into the next.
        score: Scores a batch under a network.
        rank: Of this process.
        world_size: Number of processes, each calling ``prepare`` with the same pairs in the same order.
        resumed: Whether the network's trained weights may not be those that it was loaded with any more.
        sharded: Whether the network's weights are spread over the ranks, so that all must run it together.
    """

    recipe: dict[str, Any]
    pairs: Sequence[Pair]
    batches: Callable[[Sequence[Sequence[int]]], Iterable[Any]]
    score: Callable[[Any, Any], PairLogps]
    rank: int = 0
    world_size: int = 1
    resumed: bool = False
    sharded: bool = False


def prepared(folder: Path, shard_size: int, network: Any, preparation: Preparation) -> dict[str, Row]:  # noqa: ANN401
    """Compute whatever log-probs are missing, this rank its own shards, and wait for the other ranks'.

    Args:
        folder: Of the caches.
        shard_size: Pairs per shard.
        network: The policy; its adapters are off meanwhile.
        preparation: The pairs, and how to score them.

    Returns:
        The rows by id: a PairLogps' fields, and the log-probs' dtype.

    Raises:
        ValueError: A file is damaged, an id stands for two pairs, or values are missing that this network cannot
            give (any more).
        FloatingPointError: A log-prob is no finite number.
        RuntimeError: Another rank died.
    """
    rank, world_size = preparation.rank, preparation.world_size
    wanted = _fingerprints(preparation.pairs)
    landing = Landing(folder, "reference", {"cache_version": CACHE_VERSION, **preparation.recipe}, COLUMNS)
    shards = shards_of([tuple(pair) for pair in preparation.pairs], shard_size)
    found: dict[Pair, Row] = {}
    read: set[Path] = set()

    def missing(rows: Sequence[Pair]) -> tuple[Pair, ...]:
        return tuple(row for row in rows if row not in found)

    def owed() -> list[tuple[int, str]]:
        for path in sorted(landing.folder.glob("[0-9]*.parquet")):
            if path not in read:
                found.update(_read(landing, path))
                read.add(path)
        return [(shard.number % world_size, shard.name) for shard in shards if missing(shard.rows)]

    if owed():
        _refuse_to_compute(network, preparation, landing)
        todo = [
            shard._replace(digest=digest(rows), rows=rows)
            for shard in shards[rank::world_size]
            if (rows := missing(shard.rows))
        ]
        if rank == 0:
            sys.stderr.write(_told(landing, wanted, found) + "\n")
        with sign_of_life(landing.folder, rank):
            _compute(network, preparation, landing, todo)
            wait_for(owed, landing.folder)
    return {pair_id: found[pair_id, fingerprint] for pair_id, fingerprint in wanted.items()}


def _fingerprints(pairs: Sequence[Pair]) -> dict[str, str]:
    """Return the fingerprints by id."""
    by_id: dict[str, str] = {}
    for pair_id, fingerprint in pairs:
        if pair_id in by_id:
            raise ValueError(f"two pairs have the id {pair_id!r}: their reference log-probs could not be told apart")
        by_id[pair_id] = fingerprint
    return by_id


def _read(landing: Landing, path: Path) -> dict[Pair, Row]:
    """Read a shard that whatever run has landed, if it is what it says it is."""
    name = path.stem.partition("-")[2]
    try:
        rows = landing.read_file(path)
        whole = digest([(row["id"], row["fingerprint"]) for row in rows]) == name
        whole = whole and all(row.pop("check") == digest(row) for row in rows)
    except (pa.ArrowException, UnicodeError, KeyError, TypeError):  # what damage to names and types comes to
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged (its rows are not those that were written): delete it and run again")
    return {(row["id"], row["fingerprint"]): row for row in rows}


def _refuse_to_compute(network: Any, preparation: Preparation, landing: Landing) -> None:  # noqa: ANN401
    """Refuse to take values of a network that cannot give the reference's."""
    if preparation.sharded:
        raise ValueError(
            f"reference log-probs are missing in {landing.folder}, and cannot be computed where the weights are spread "
            "over ranks: take synthalign.dpo.reference.AdaptersOff, or make them in a run with strategy ddp first"
        )
    if preparation.resumed and trained_without_adapters(network):
        raise ValueError(
            f"reference log-probs are missing in {landing.folder}, and this run goes on with weights that have been "
            "trained, which are no reference: bring back the folder that the run began with, or begin anew"
        )


def _told(landing: Landing, wanted: dict[str, str], found: dict[Pair, Row]) -> str:
    """Say what is computed, and what is on disk and is not used."""
    num_missing = sum(pair not in found for pair in wanted.items())
    line = f"reference: log-probs of {num_missing} of {len(wanted)} pairs are computed into {landing.folder}"
    ids = {pair_id for pair_id, _ in found}
    if changed := [pair_id for pair_id, mark in wanted.items() if pair_id in ids and (pair_id, mark) not in found]:
        line += f"; {len(changed)} of them have changed since ({changed[0]}, …)"
    others = [path for path in landing.folder.parent.glob("reference-*/recipe.json") if path.parent != landing.folder]
    if others and not found:
        nearest = min((_differences(path, landing.recipe) for path in sorted(others)), key=len)
        line += f"; of {len(others)} other caches there none fits: the nearest differs in {', '.join(nearest)}"
    return line


def _differences(path: Path, recipe: dict[str, Any]) -> list[str]:
    """Name the parts in which a recipe on disk differs."""
    try:
        theirs, ours = _flat(json.loads(path.read_text(encoding="utf-8"))), _flat(recipe)
    except (OSError, ValueError):
        return [f"{path}, which cannot be read"]
    return [
        f"{key} ({_short(theirs.get(key))} there, {_short(ours.get(key))} now)"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]


def _flat(value: Any, name: str = "") -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for part in value for key, leaf in _flat(value[part], f"{name}.{part}".lstrip(".")).items()}


def _short(value: Any) -> str:  # noqa: ANN401
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _compute(network: Any, preparation: Preparation, landing: Landing, shards: list[Shard]) -> None:  # noqa: ANN401
    """Score the pairs of these shards and land each shard when it is whole."""
    places = {tuple(pair): place for place, pair in enumerate(preparation.pairs)}
    batches = iter(preparation.batches([[places[row] for row in shard.rows] for shard in shards]))
    total = sum(len(shard.rows) for shard in shards)
    bar = tqdm(total=total, desc="reference", unit="pair", disable=preparation.rank != 0)
    with torch.no_grad(), adapters_off(network), _in_eval_mode(network), bar:
        for shard in shards:
            rows: dict[str, Row] = {}
            while len(rows) < len(shard.rows):
                batch = next(batches)
                rows |= _rows_of(batch.ids, preparation.score(network, batch))
                bar.update(len(batch.ids))
            fingerprints = dict(shard.rows)
            assert rows.keys() == fingerprints.keys(), "a batch holds pairs of another block"
            made = [{"id": pair_id, "fingerprint": mark, **rows[pair_id]} for pair_id, mark in fingerprints.items()]
            landing.write(shard, [{**row, "check": digest(row)} for row in made])


def _rows_of(ids: Sequence[str], logps: PairLogps) -> dict[str, Row]:
    """Turn a batch's log-probs into rows, by id."""
    finite = (logps.chosen.isfinite() & logps.rejected.isfinite()).tolist()
    if bad := [pair_id for pair_id, fine in zip(ids, finite, strict=True) if not fine]:
        raise FloatingPointError(
            f"the reference's log-probs are no finite numbers at pairs {', '.join(bad)}: is its dtype too small?"
        )
    dtype = str(logps.chosen.dtype).removeprefix("torch.")
    columns = zip(*(column.tolist() for column in logps), strict=True)
    rows = [dict(zip(PairLogps._fields, values, strict=True)) for values in columns]
    return {pair_id: {**row, "dtype": dtype} for pair_id, row in zip(ids, rows, strict=True)}


@contextmanager
def _in_eval_mode(network: Any) -> Iterator[None]:  # noqa: ANN401
    """Turn dropout off for a while."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
