"""Finds the landings that a table of pairs was made from, by the recipes that lie in them.

Reads the files alone: nothing here loads the parts that made them, so a page is there in a second.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from synthalign.store.landing import HALVED

STAGES = ("draw", "rank", "pick", "answer", "score", "pair")
"""In the order of the journey; a stage of another name comes last."""

TABLE_SUFFIX = ".table"
"""As in ``synthalign.tables``, which is not imported: it brings torch, and with it seconds."""

ROWS_AT_ONCE = 32
"""Rows that are in memory together. A row of drawn images holds some megabytes."""


class Landing(NamedTuple):
    """One stage's folder, and what it was made from."""

    folder: Path
    recipe: dict[str, Any]

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return self.folder.name.rpartition("-")[0]

    @property
    def address(self) -> str:
        """Digest of the recipe, by which later landings name this one."""
        return self.folder.name.rpartition("-")[2]

    def files(self) -> list[Path]:
        """List the shards that have landed."""
        return sorted(path for path in self.folder.glob("*.parquet") if not path.name.startswith("."))


class Chain(NamedTuple):
    """The landings behind one table, in the order of the journey.

    ``table`` is None while the run is unfinished. ``others`` counts the tables that would also have fitted.
    """

    landings: list[Landing]
    table: Path | None
    others: int = 0

    def of(self, stage: str) -> list[Landing]:
        """Return the landings of a stage: several responders answer, a mixture has several rewards."""
        return [landing for landing in self.landings if landing.stage == stage]

    def pair_files(self) -> list[Path]:
        """List the shards of the pairs: those that the table names, or whatever has landed."""
        if self.table is None:
            return [path for landing in self.of("pair") for path in landing.files()]
        files = [self.table.parent / name for name in _json(self.table, list)]
        if lost := [path.name for path in files if not path.is_file()]:
            raise ValueError(f"{self.table} names {len(lost)} shards that are gone ({lost[0]}, …): synthesize again")
        return files


def find(run: Path) -> Chain:
    """Find what to show: in a store of landings, a landing, a .table file in one, or the folder of a training run.

    Of several tables the newest is taken; a run that has begun to land after it, and is unfinished, is newer.

    Raises:
        ValueError: There is nothing to show.
    """
    if run.suffix == TABLE_SUFFIX and run.is_file():
        return _behind(run, _store(run.resolve().parent.parent))
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder or {TABLE_SUFFIX} file; name a store, a training run or a table")
    if (run / "config.yaml").is_file():
        return _trained_on(run / "config.yaml")
    if (run / "recipe.json").is_file():
        return _newest(run, _store(run.resolve().parent), only=run.resolve())
    return _newest(run, _store(run))


def rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Read a shard's rows, a few at a time; columns that it lacks are left out.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        with pq.ParquetFile(path) as shard:
            names = shard.schema_arrow.names
            wanted = names if columns is None else [name for name in columns if name in names]
            for batch in shard.iter_batches(ROWS_AT_ONCE, columns=wanted):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from None


def num_rows(path: Path) -> int:
    """Return the number of rows of a shard, from its end.

    Raises:
        ValueError: The file is damaged.
    """
    return int(_metadata(path).num_rows)


def halvings(path: Path) -> list[str]:
    """Return what a shard says of batches that were halved for lack of memory."""
    said = (_metadata(path).metadata or {}).get(HALVED, b"")
    return [line for line in said.decode().splitlines() if line]


def _metadata(path: Path) -> Any:  # noqa: ANN401 - pyarrow ships no types
    try:
        return pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged ({str(error).splitlines()[0]}): delete it and run again")


def _json(path: Path, kind: type) -> Any:  # noqa: ANN401 - of that kind
    """Read a file of JSON that lies in a landing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise _damaged(path, error) from None
    if not isinstance(value, kind):
        raise ValueError(f"{path} is damaged (no {kind.__name__}): delete it and run again")
    return value


def _store(folder: Path) -> dict[str, Landing]:
    """Return the landings of a store by their addresses."""
    found = (Landing(path.parent, _json(path, dict)) for path in folder.glob("*-*/recipe.json"))
    return {landing.address: landing for landing in found}


def _parents(landing: Landing, store: dict[str, Landing]) -> Iterator[Landing]:
    """Give the landings that a recipe names, wherever in it."""
    yield from (store[text] for text in _texts(landing.recipe) if text in store)


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 - anything JSON can carry
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _chain(ends: Sequence[Landing], store: dict[str, Landing], *, table: Path | None = None, others: int = 0) -> Chain:
    """Follow the recipes back from a run's last landings."""
    todo, known = list(ends), {}
    while todo:
        landing = todo.pop()
        if landing.address not in known:
            known[landing.address] = landing
            todo += _parents(landing, store)
    order = {stage: number for number, stage in enumerate(STAGES)}
    landings = sorted(known.values(), key=lambda one: (order.get(one.stage, len(STAGES)), one.address))
    return Chain(landings, table, others)


def _behind(table: Path, store: dict[str, Landing], others: int = 0) -> Chain:
    """Follow the recipes back from a table."""
    landing = store.get(table.resolve().parent.name.rpartition("-")[2])
    if landing is None:
        raise ValueError(f"{table} lies in no landing: there is no recipe.json beside it")
    return _chain([landing], store, table=table, others=others)


def _newest(run: Path, store: dict[str, Landing], only: Path | None = None) -> Chain:
    """Choose among the tables and the unfinished runs of a store."""
    named = {parent.address for landing in store.values() for parent in _parents(landing, store)}
    tables, unfinished = [], []
    for landing in store.values():
        if only is not None and landing.folder.resolve() != only:
            continue
        written = list(landing.folder.glob(f"*{TABLE_SUFFIX}"))
        tables += written
        if landing.address not in named or only is not None:
            last = max(map(_written, landing.files()), default=0.0)
            if last > max(map(_written, written), default=0.0):
                unfinished.append((last, landing))
    newest_table = max(map(_written, tables), default=0.0)
    if unfinished and (newest := max(unfinished, key=lambda one: one[0]))[0] > newest_table:
        return _chain(_siblings(newest[1], [one for _, one in unfinished]), store, others=len(tables))
    if not tables:
        raise ValueError(f"{run}: no landing in it; `synthalign synthesize` makes them, in the store of its config")
    return _behind(max(tables, key=_written), store, len(tables) - 1)


def _siblings(landing: Landing, ends: Sequence[Landing]) -> list[Landing]:
    """Add the answers of the other responders, which differ in who answered alone."""
    own = {key: value for key, value in landing.recipe.items() if key not in {"responder", "repeat"}}
    alike = ({k: v for k, v in end.recipe.items() if k not in {"responder", "repeat"}} for end in ends)
    return [end for end, recipe in zip(ends, alike, strict=True) if recipe == own]


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _trained_on(config: Path) -> Chain:
    """Find the table that a training run used: its recipes agree with the run's config, and it is the newest such."""
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{config}: malformed YAML: {' '.join(str(error).split())}") from None
    data = (settings.get("data") or {}).get("init_args") or {}
    if isinstance(pairs := data.get("pairs"), str):
        if Path(pairs).suffix == TABLE_SUFFIX or (Path(pairs) / "recipe.json").is_file():
            return find(Path(pairs))
        raise ValueError(
            f"{config}: the run trained on {pairs}, which is no landing: a gallery shows what was made here"
        )
    synthesis = data.get("synthesis")
    if not isinstance(synthesis, dict) or not isinstance(synthesis.get("store"), str):
        raise ValueError(f"{config} names no store: name the store or its {TABLE_SUFFIX} file")
    folder = Path(synthesis["store"])
    if not folder.is_dir():
        raise ValueError(f"{config}: its store {folder} is not here; go to the folder where the run was started")
    store = _store(folder)
    chains = [_behind(table, store) for table in folder.glob(f"*/*{TABLE_SUFFIX}")]
    fitting = [one for one in chains if all(agrees(synthesis, landing.recipe) for landing in one.landings)]
    if not fitting:
        raise ValueError(f"{config}: no table in {folder} was made with its settings; name one, or synthesize again")
    # The config is written when the pairs are there; a table written later belongs to a later run.
    began = _written(config)
    before = [one for one in fitting if one.table and _written(one.table) <= began] or fitting
    return max(before, key=lambda one: _written(one.table) if one.table else 0.0)._replace(others=len(fitting) - 1)


def agrees(config: Any, recipe: Any) -> bool:  # noqa: ANN401 - both as JSON has them
    """Whether a recipe could come from a config: no setting that both name differs.

    Settings that are paths stand in a recipe by content, and are not compared; nor is what a config leaves open.
    """
    if isinstance(config, dict) and isinstance(recipe, dict):
        if "class_path" in config:
            if not _same_class(config["class_path"], recipe.get("class")):
                return False
            config = config.get("init_args") or {}
        gates = [*(config.get("response_gates") or []), *(config.get("pair_gates") or [])]
        return (
            all(agrees(config[key], recipe[key]) for key in config.keys() & recipe.keys())
            and _among(config.get("responders"), recipe.get("responder"))
            and all(any(agrees(gate, one) for one in recipe["gates"]) for gate in gates if "gates" in recipe)
        )
    if isinstance(config, list) and isinstance(recipe, list):
        return len(config) == len(recipe) and all(map(agrees, config, recipe))
    if config is None or (isinstance(recipe, dict) and "content" in recipe):
        return True
    return bool(config == recipe)


def _same_class(path: str, defined: str | None) -> bool:
    """Whether a class path means a class, whose module it may name or a package that hands it on."""
    package, _, name = path.rpartition(".")
    module, _, real = str(defined).rpartition(".")
    return name == real and f"{module}.".startswith(f"{package}.")


def _among(responders: list[Any] | None, responder: Any) -> bool:  # noqa: ANN401
    """Whether one of several responders could be the one of a recipe, if it names one."""
    return responder is None or not responders or any(agrees(one, responder) for one in responders)
