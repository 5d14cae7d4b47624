"""The report: one file with the figures, all counts, and the answers that changed with their images."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from landed import HOSTILE
from page_reader import Page
from PIL import Image
from report_runs import RunFolder, yes_no

from synthalign.cli import main
from synthalign.evals.pope import POPE
from synthalign.evals.results import Results, write_results
from synthalign.evals.samples import merge_parts, sample_rows, write_part
from synthalign.evals.tally import Tally
from synthalign.pages.markup import csp_hash
from synthalign.pages.report import write
from synthalign.types import Reply


def three_epochs(root: Path) -> RunFolder:
    """Two evaluations, three times: one answer made right, one made wrong, one wrong throughout, two right."""
    run = RunFolder(root)
    said = {
        0: ("Yes", "No", "Yes", "No", "No"),
        1: ("Yes", "Yes", "Yes", "No", "No"),
        2: ("No", "Yes", "Yes", "No", "No"),
    }
    for epoch, replies in said.items():
        rows = [yes_no(n, reply, image=run.image(f"{n}.png")) for n, reply in enumerate(replies)]
        open_rows = [yes_no(7, "A cup.", image=run.image("7.png"), kind="other") | {"correct": None}]
        metrics = {"pope/random/accuracy": replies.count("No") / 5, "pope/random/n": 5.0}
        run.sit(epoch, {"pope": rows, "mmhal": open_rows}, metrics)
    run.evals["pope"] = {
        "class_path": "synthalign.evals.pope.POPE",
        "questions": 5,
        "about": {"parser": "official"},
        "legend": {"random/accuracy": {"better": "high", "percent": True, "headline": True}},
    }
    run.evals["mmhal"] = {"about": {"judge": "none"}, "legend": {}}
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = three_epochs(tmp_path_factory.mktemp("runs") / "fit").finish()
    return folder, write(folder)


def test_the_page_lies_in_the_runs_folder_and_says_what_changed(made):
    folder, written = made
    assert written.path == folder / "report.html"
    assert written.headline == (
        "before training against epoch 2: pope 1 made right, 1 made wrong of 5; mmhal 1 answers, unjudged"
    )
    assert written.notes == ["mmhal: 1 answers of the last evaluation were not judged; no figure counts them."]
    page = Page(written.path)
    assert written.headline in page.text and written.notes[0] in page.text


def test_the_page_lists_what_was_not_right_every_time(made):
    page = Page(made[1].path)
    assert {row["id"]: row["verdicts"] for row in page.rows} == {
        "pope/random/0": "001",
        "pope/random/1": "100",
        "pope/random/2": "000",
        "mmhal/other/7": "???",
    }
    evals = {one["name"]: one for one in page.data["run"]["evals"]}
    assert evals["pope"]["patterns"] == {"random": {"001": 1, "100": 1, "000": 1, "111": 2}}
    assert evals["pope"]["about"] == {"parser": "official"} and evals["mmhal"]["about"] == {"judge": "none"}


def test_every_answer_has_its_replies_its_truth_and_its_image(made):
    page = Page(made[1].path)
    for number, row in enumerate(page.rows):
        more = page.data[f"r{number}"]
        assert more["question"].startswith(row["question"]) and more["truth"] == "no"
        assert base64.b64decode(page.data[f"i{row['picture']}"]).startswith(b"\xff\xd8")
    first = page.data["r0"]
    assert [first["answers"][place]["reply"] for place in first["at"]] == ["Yes", "Yes", "No"]


def test_an_image_of_several_questions_is_on_the_page_once(tmp_path):
    run = RunFolder(tmp_path)
    image = run.image("cup.png")
    run.sit(0, {"pope": [yes_no(n, "Yes", image=image) for n in range(6)]}, {})
    page = Page(write(run.finish()).path)
    assert {row["picture"] for row in page.rows} == {0}
    assert [name for name in page.data if re.fullmatch(r"i\d+", name)] == ["i0"]


def test_images_that_are_gone_or_broken_leave_a_blank_and_are_counted(tmp_path):
    run = RunFolder(tmp_path)
    broken = tmp_path / "images" / "broken.png"
    broken.write_bytes(b"no image")
    names = [run.image("cup.png"), broken.as_posix(), "nowhere/else.png"]
    run.sit(0, {"pope": [yes_no(n, "Yes", image=name) for n, name in enumerate(names)]}, {})
    written = write(run.finish())
    assert written.notes == ["2 images cannot be found or read; a blank stands in their place."]
    page = Page(written.path)
    assert page.data["i0"] and page.data["i1"] is None and "i2" not in page.data


def test_images_named_from_where_the_run_began_are_found(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "runs" / "demo" / "fit")
    (tmp_path / "world").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "world" / "cup.png")
    run.sit(0, {"pope": [yes_no(1, "Yes", image="world/cup.png")]}, {})
    folder = run.finish()
    monkeypatch.chdir(tmp_path / "runs")
    assert Page(write(folder).path).data["i0"]


def test_what_no_number_is_becomes_nothing(tmp_path):
    run = RunFolder(tmp_path)
    run.sit(0, {"pope": [yes_no(1, "Yes", margin=float("nan"))]}, {"pope/f1": float("nan")})
    page = Page(write(run.finish()).path)
    assert page.data["run"]["sittings"][0]["metrics"] == {"pope/f1": None}


def test_the_page_keeps_to_its_size_or_says_what_it_would_take(tmp_path):
    run = RunFolder(tmp_path)
    run.sit(0, {"pope": [yes_no(n, "Yes", image=run.image(f"{n}.png", 380)) for n in range(14)]}, {})
    folder = run.finish()
    whole = write(folder).path.stat().st_size
    for share in (0.8, 0.5):
        small = write(folder, max_mb=share * whole / 1e6)
        assert small.path.stat().st_size <= share * whole
        assert small.notes[-1].startswith("To stay within the size limit, ")
    with pytest.raises(ValueError, match=r"answers take 0\.\d MB without any image: raise --max-mb 0\.02"):
        write(folder, max_mb=0.02)
    assert sorted(path.name for path in folder.iterdir()) == ["images", "report.html", "results.json", "samples"]


def test_what_a_model_wrote_stays_text(tmp_path):
    run = RunFolder(tmp_path / HOSTILE.replace("/", "|"))
    row = yes_no(1, HOSTILE) | {"question": HOSTILE, "judgement": HOSTILE, "truth": {HOSTILE: HOSTILE}}
    run.sit(0, {"pope": [row]}, {f"pope/{HOSTILE}": 1.0})
    page = Page(write(run.finish(policy=HOSTILE)).path)
    assert page.data["r0"]["answers"][0]["reply"] == HOSTILE and page.data["r0"]["truth"] == {HOSTILE: HOSTILE}
    assert HOSTILE in page.text and not [tag for tag, _ in page.tags if tag == "img"]
    assert sum(tag == "script" for tag, _ in page.tags) == 1 + 3 + 1  # its own; names, run and rows; one answer


def test_the_page_asks_for_nothing_outside_itself(made):
    page = Page(made[1].path)
    assert not [tag for tag, attributes in page.tags if {"src", "srcset", "data"} & attributes.keys()]
    assert {attributes["href"] for _, attributes in page.tags if "href" in attributes} == {"#browse"}
    assert not re.search(r"url\(|@import", page.code["style"])
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|innerHTML|insertAdjacentHTML", page.code["script"])
    [policy] = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src {csp_hash(page.code['style'])}; "
        f"script-src {csp_hash(page.code['script'])}"
    )
    assert not [attribute for _, attributes in page.tags for attribute in attributes if attribute.startswith("on")]


def test_what_the_callback_writes_is_what_the_page_reads(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "cup.png")
    asked = [{"question_id": n, "image": "cup.png", "text": "Is it?", "label": "yes"} for n in (1, 2)]
    (tmp_path / "random.json").write_text("".join(json.dumps(row) + "\n" for row in asked))
    pope = POPE(files={"random": tmp_path / "random.json"}, images=tmp_path)
    questions = pope.questions()
    history: list[dict[str, Any]] = []
    for epoch, texts in enumerate([("No", "No"), ("Yes", "No")]):
        replies = [Reply(text, False, None) for text in texts]
        verdicts = pope.verdicts(questions, replies)
        tally = Tally(pope)
        tally.update(questions, verdicts)
        folder = tmp_path / "fit" / "samples" / f"epoch-{epoch:03d}"
        write_part(folder, "pope", 0, sample_rows(questions, replies, verdicts))
        merge_parts(folder, "pope", 1, [question.id for question in questions])
        metrics = {f"pope/{key}": value for key, value in tally.compute().items()}
        history.append({"epoch": epoch, "step": epoch, "samples": f"samples/{folder.name}", "metrics": metrics})
    results = Results("fit", history[0]["metrics"], history[1]["metrics"], history)
    write_results(tmp_path / "fit" / "results.json", results, [pope])
    written = write(tmp_path / "fit")
    assert written.headline == "before training against epoch 1: pope 1 made right, 0 made wrong of 2"
    page = Page(written.path)
    assert [one["metrics"]["pope/random/accuracy"] for one in page.data["run"]["sittings"]] == [0.0, 0.5]
    [told] = page.data["run"]["evals"]
    assert told["legend"]["random/accuracy"] == {"better": "high", "percent": True, "headline": True}
    assert [row["verdicts"] for row in page.rows] == ["01", "00"] and page.data["i0"]


def test_the_command_writes_the_page_and_says_where(made, tmp_path, capsys):
    main(["report", str(made[0] / "results.json"), "--out", str(tmp_path / "page.html")])
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [made[1].headline, *made[1].notes]
    assert said[2].startswith(f"Report: {tmp_path / 'page.html'} (") and (tmp_path / "page.html").is_file()


def test_the_report_needs_no_model_library():
    script = "import sys, synthalign.pages.report; print({'torch', 'lightning', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_place_that_cannot_be_written_is_named(made, tmp_path):
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(RuntimeError, match=r"taken\.html cannot be written"):
        write(made[0], tmp_path / "taken.html")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.html"]
