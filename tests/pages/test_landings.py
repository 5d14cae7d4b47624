"""What to show is found by the recipes: tables, unfinished runs, and the table that a training run used."""

import os
from pathlib import Path

import pytest
import yaml
from landed import Store

from synthalign import tables
from synthalign.pages import landings
from synthalign.pages.gallery import write
from synthalign.pages.landings import TABLE_SUFFIX, agrees, find, halvings, rows


def test_the_suffix_of_a_table_is_the_tables_own():
    assert TABLE_SUFFIX == tables.TABLE_SUFFIX


def test_a_table_leads_back_to_everything_it_was_made_from(tmp_path):
    store = Store(tmp_path)
    store.land([0, 1])
    other = Store(tmp_path, draw={"seed": 7})
    other.land([0])
    chain = find(store.table())
    assert [landing.folder for landing in chain.landings] == [one.folder for one in store.landings.values()]


def test_of_two_tables_the_newest_is_shown_and_the_other_counted(tmp_path):
    store = Store(tmp_path)
    store.land([0])
    last = max(path.stat().st_mtime for path in tmp_path.rglob("*"))
    newest = store.table("b" * 16, written_at=last + 20)
    store.table("a" * 16, written_at=last + 10)
    for run in (tmp_path, newest.parent):
        chain = find(run)
        assert (chain.table, chain.others) == (newest, 1)


def test_a_run_that_landed_after_the_last_table_is_shown_as_unfinished(tmp_path):
    finished = Store(tmp_path)
    finished.land([0])
    table = finished.table(written_at=1_000_000.0)
    for path in tmp_path.rglob("*.parquet"):
        os.utime(path, (999_999, 999_999))
    begun = Store(tmp_path, draw={"seed": 7})
    begun.land([0, 1], ["draw", "rank", "pick", "answer"])
    chain = find(tmp_path)
    assert chain.table is None and chain.others == 1
    assert chain.landings[-1].folder == begun.landings["answer"].folder
    assert find(table).table == table


def test_the_answers_of_an_unfinished_runs_other_responders_belong_to_it(tmp_path):
    first = Store(tmp_path)
    first.land([0], ["draw", "rank", "pick", "answer"])
    second = Store(tmp_path, answer={"responder": {"class": "synthalign.vlm.VLM", "max_new_tokens": 64}})
    second.land([0], ["answer"])
    stranger = Store(tmp_path, answer={"num_samples": 9})
    stranger.land([0], ["answer"])
    os.utime(next(stranger.landings["answer"].folder.glob("*.parquet")), (5.0, 5.0))
    found = {landing.folder for landing in find(tmp_path).of("answer")}
    assert found == {first.landings["answer"].folder, second.landings["answer"].folder}


def config(path: Path, store: Path, min_margin: float, **synthesis: object) -> Path:
    """The config that a run leaves in its folder."""
    gate = {"class_path": "synthalign.pairs.TooClose", "init_args": {"min_margin": min_margin}}
    settings = {"store": str(store), "prompts": "p.jsonl", "pair_gates": [gate], "rule": None, **synthesis}
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"synthesis": settings}}}))
    return path


def test_a_training_run_shows_the_table_that_its_config_agrees_with(tmp_path):
    made = {}
    for min_margin in (0.5, 1.0):
        gate = {"class": "synthalign.pairs.TooClose", "min_margin": min_margin}
        store = Store(tmp_path / "store", pair={"gates": [{"class": "synthalign.pairs.Empty"}, gate]})
        store.land([0])
        made[min_margin] = store.table(written_at=1_000_000.0 + min_margin)
    responder = {"class_path": "synthalign.vlm.VLM", "init_args": {"max_new_tokens": 32}}
    for min_margin in (0.5, 1.0):
        run = config(tmp_path / "run", tmp_path / "store", min_margin, responders=[responder], num_images=3)
        assert find(run).table == made[min_margin]
    with pytest.raises(ValueError, match=r"no table in .*store was made with its settings"):
        find(config(tmp_path / "run", tmp_path / "store", 0.7))
    responder["init_args"] = {"max_new_tokens": 33}
    with pytest.raises(ValueError, match=r"no table in .*store was made with its settings"):
        find(config(tmp_path / "run", tmp_path / "store", 1.0, responders=[responder]))


def test_a_training_run_leaves_later_tables_to_later_runs(tmp_path):
    store = Store(tmp_path / "store")
    store.land([0])
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"synthesis": {"store": str(store.root)}}}}))
    began = (run / "config.yaml").stat().st_mtime
    store.table("1" * 16, written_at=began - 50)
    used = store.table("2" * 16, written_at=began - 5)
    store.table("3" * 16, written_at=began + 5)
    assert find(run).table == used


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no landing in it"),
        ({"config.yaml": "data: {init_args: {pairs: set.json}}"}, "trained on set.json, which is no landing"),
        ({"config.yaml": "data: {init_args: {}}"}, "names no store"),
        ({"config.yaml": "data: {init_args: {synthesis: {store: /gone}}}"}, "its store /gone is not here"),
        ({"config.yaml": "a: [b"}, "config.yaml: malformed YAML"),
    ],
)
def test_where_there_is_nothing_to_show_one_line_says_why(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said) as stopped:
        find(tmp_path)
    assert "\n" not in str(stopped.value) and str(tmp_path) in str(stopped.value)


def test_what_is_neither_a_folder_nor_a_table_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing: no such folder"):
        find(tmp_path / "nothing")


def test_a_table_whose_shards_are_gone_says_so(tmp_path):
    store = Store(tmp_path)
    store.land([0])
    chain = find(store.table())
    chain.pair_files()[0].unlink()
    with pytest.raises(ValueError, match="names 1 shards that are gone"):
        chain.pair_files()


def test_a_damaged_shard_is_named(tmp_path):
    store = Store(tmp_path)
    store.land([0])
    path = find(store.table()).pair_files()[0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
        list(rows(path))


def test_a_damaged_shard_of_any_stage_is_one_line(tmp_path):
    store = Store(tmp_path / "store")
    store.land([0])
    table = store.table()
    [path] = store.landings["answer"].folder.glob("*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .*: delete it and run again$") as caught:
        write(table)
    assert Path(caught.traceback[-1].path).is_relative_to(
        Path(landings.__file__).parent
    )  # so that the door shows one line


@pytest.mark.parametrize("content", ["{", "3", "\x00"])
@pytest.mark.parametrize("name", ["recipe.json", "0000000000000000.table"])
def test_a_damaged_recipe_or_table_is_named(name, content, tmp_path):
    store = Store(tmp_path)
    store.land([0])
    table = store.table()
    (table.parent / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged .*: delete it and run again$"):
        find(table).pair_files()


def test_halved_batches_are_read_from_a_shard(tmp_path):
    from synthalign.store import Shard

    store = Store(tmp_path)
    store.landings["draw"].write(Shard(0, "h", "x", ()), [], notes=["batch of 8 halved"])
    assert halvings(store.landings["draw"].folder / "h-x.parquet") == ["batch of 8 halved"]


@pytest.mark.parametrize(
    ("path", "defined", "same"),
    [
        ("synthalign.vlm.VLM", "synthalign.vlm.responder.VLM", True),  # handed on by the package
        ("synthalign.vlm.responder.VLM", "synthalign.vlm.responder.VLM", True),
        ("synthalign.vlm.VLM", "synthalign.vlmish.VLM", False),
        ("synthalign.vlm.VLM", "synthalign.vlm.responder.LLM", False),
        ("synthalign.vlm.VLM", None, False),
    ],
)
def test_a_class_is_known_by_the_path_of_a_package_that_hands_it_on(path, defined, same):
    config = {"class_path": path, "init_args": {"temperature": 1.0}}
    assert agrees(config, {"class": defined, "temperature": 1.0}) == same
    assert not agrees(config, {"class": defined, "temperature": 0.5})
