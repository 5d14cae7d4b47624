"""The page: one file, whole, with everything in it and nothing that runs but its own script."""

import base64
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from landed import HOSTILE, Store
from page_reader import Page
from small_synthesis import prompt_rows, small_synthesis, write_prompts

from synthalign.cli import main
from synthalign.pages import gallery, report
from synthalign.pages.gallery import write
from synthalign.pages.markup import csp_hash
from synthalign.pipeline import summary
from synthalign.tables import read_pairs


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_llava, tiny_clip, tiny_reward):
    """A store that a real synthesis made, and the page of it."""
    folder = tmp_path_factory.mktemp("made")
    write_prompts(folder / "prompts.jsonl", prompt_rows(5))
    models = {"llava": str(tiny_llava), "clip": str(tiny_clip), "reward": str(tiny_reward)}
    table = small_synthesis(folder, models).run()
    return table, write(folder / "store")


def test_the_page_of_a_synthesis_holds_every_question_with_its_outcome(made):
    table, written = made
    page, pairs = Page(written.path), read_pairs(table)
    reasons = page.data["names"]["reasons"]
    outcomes = {row["id"]: None if row["reason"] is None else reasons[row["reason"]] for row in page.rows}
    assert outcomes == {row.id: None for row in pairs.rows} | {name: drop.reason for name, drop in pairs.dropped}
    assert len(page.rows) == 10
    margins = {row["id"]: row["margin"] for row in page.rows if row["reason"] is None}
    assert margins == {row.id: pytest.approx(row.margin, rel=1e-4) for row in pairs.rows}
    told = summary(len(pairs.rows), pairs.dropped)
    assert f"{len(pairs.rows)} pairs of 10 questions" in written.headline and told.startswith(
        f"{len(pairs.rows)} pairs"
    )


def test_every_response_and_every_image_of_a_synthesis_is_on_its_page(made):
    table, written = made
    page = Page(written.path)
    said = {row.id: row for row in read_pairs(table).rows}
    assert len(page.data["names"]["responders"]) == 1  # the same model twice
    for number, row in enumerate(page.rows):
        more = page.data[f"r{number}"]
        assert len(more["candidates"]) == 4  # two responders, two samples
        if row["id"] in said:
            assert more["candidates"][more["chosen"]]["text"] == said[row["id"]].chosen
            assert more["candidates"][more["rejected"]]["text"] == said[row["id"]].rejected
        picture = page.data[f"i{row['picture']}"]
        assert len(picture["candidates"]) == 2
        assert all(base64.b64decode(one["image"]).startswith(b"\xff\xd8") for one in picture["candidates"])
        scores = [one["score"] for one in picture["candidates"]]
        assert picture["best"] == scores.index(max(scores))
        assert [one["guidance_scale"] for one in picture["candidates"]] == [5.0, 7.0]
    assert len(page.data["pictures"]) == 5 and sum(name.startswith("i") for name in page.data) == 5


def test_the_page_says_what_the_run_was_made_from(made):
    page = Page(made[1].path)
    for stage in ("draw", "rank", "pick", "answer", "score", "pair"):
        assert f"{stage}-" in page.text
    assert ".BestWorst" in page.text and "max_new_tokens: 6" in page.text


def test_the_page_asks_for_nothing_outside_itself(made):
    page = Page(made[1].path)
    assert not [tag for tag, attributes in page.tags if {"src", "srcset", "data"} & attributes.keys()]
    assert {attributes["href"] for _, attributes in page.tags if "href" in attributes} == {"#browse"}
    assert not re.search(r"url\(|@import", page.code["style"])
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|innerHTML|insertAdjacentHTML", page.code["script"])


def test_the_policy_lets_the_pages_own_code_run_and_no_other(made):
    page = Page(made[1].path)
    [policy] = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    code = page.code
    assert policy == (
        f"default-src 'none'; img-src data:; style-src {csp_hash(code['style'])}; script-src {csp_hash(code['script'])}"
    )
    assert not [attribute for _, attributes in page.tags for attribute in attributes if attribute.startswith("on")]


def test_what_a_model_wrote_stays_text(tmp_path):
    store = Store(tmp_path / HOSTILE.replace("/", "|"), pair={"rule": {"class": HOSTILE}})
    store.land([0], chosen=HOSTILE, rejected="No.")
    store.land([1], dropped=HOSTILE)
    store.table()
    page = Page(write(store.root, tmp_path / "page.html").path)
    assert page.data["r0"]["candidates"][0]["text"] == HOSTILE
    assert page.data["names"]["reasons"][page.rows[1]["reason"]] == HOSTILE
    assert HOSTILE in page.text and not [tag for tag, _ in page.tags if tag == "img"]
    assert sum(tag == "script" for tag, _ in page.tags) == 1 + 3 + 2 + 2  # its own, the index, two rows, two pictures


def test_an_unfinished_run_is_shown_and_called_so(tmp_path):
    store = Store(tmp_path)
    store.land([0])
    store.land([1], ["draw", "rank", "pick", "answer"])
    written = write(tmp_path)
    assert written.headline == "1 pairs of 2 questions; 1 not scored yet"
    assert "This run is unfinished" in Page(written.path).text


def test_a_mixtures_parts_are_shown_beside_the_whole(tmp_path):
    store = Store(tmp_path)
    store.land([0])
    page = Page(write(store.table()).path)
    assert page.data["r0"]["candidates"][2]["scores"] == [{"reward": "armo", "score": 1.5}]
    assert page.data["r0"]["candidates"][3] == {
        "responder": page.data["names"]["responders"].index("vlm-b"),
        "text": "",
        "refused": "empty",
        "detail": "no letter or digit in ''",
    }


def test_the_page_keeps_to_its_size_or_says_what_it_would_take(tmp_path):
    store = Store(tmp_path)
    store.land(range(60))
    table = store.table()
    whole = write(table, tmp_path / "whole.html").path.stat().st_size
    limit = 0.7 * whole / 1e6
    small = write(table, tmp_path / "small.html", max_mb=limit)
    assert small.path.stat().st_size <= limit * 1e6
    assert "To stay within the size limit" in Page(small.path).text
    with pytest.raises(ValueError, match=r"60 questions take .* MB without any image: raise --max-mb 0\.01"):
        write(table, tmp_path / "none.html", max_mb=0.01)
    assert {path.name for path in tmp_path.glob("*.html")} == {"whole.html", "small.html"}
    assert not list(tmp_path.glob(".*"))  # nothing half-written stays


def test_memory_does_not_grow_with_the_number_of_pairs(tmp_path):
    peaks = []
    for count in (150, 1200):
        store = Store(tmp_path / str(count))
        for start in range(0, count, 50):
            store.land(range(start, start + 50))
        store.table()
        tracemalloc.start()
        write(store.root)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 200_000


def test_the_command_writes_the_page_and_says_where(tmp_path, capsys):
    store = Store(tmp_path)
    store.land([0, 1])
    table = store.table()
    main(["gallery", str(table)])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "2 pairs of 2 questions"
    assert said[1].startswith(f"Gallery: {table.with_suffix('.html')} (") and table.with_suffix(".html").is_file()


def test_a_mistake_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["gallery", str(tmp_path / "nothing")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("synthalign: error: ")


def test_the_gallery_needs_no_model_library():
    script = "import sys, synthalign.pages.gallery; print({'torch', 'lightning', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_script_and_style_of_the_folder_is_on_a_page(made):
    folder = Path(gallery.__file__).parent
    assert {*gallery.SCRIPTS, *report.SCRIPTS} == {path.name for path in folder.glob("*.js")}
    assert {*gallery.STYLES, *report.STYLES} == {path.name for path in folder.glob("*.css")}
    assert Page(made[1].path).code["script"] == "".join((folder / name).read_text("utf-8") for name in gallery.SCRIPTS)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    store = Store(tmp_path)
    store.land([0])
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(RuntimeError, match=r"taken\.html cannot be written"):
        write(store.table(), tmp_path / "taken.html")
