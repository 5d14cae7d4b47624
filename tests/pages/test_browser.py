"""The pages in a real browser, where there is one."""

import json
import os
import re
import shutil
import subprocess
from fractions import Fraction
from html import unescape
from math import comb
from pathlib import Path

import pytest
from landed import HOSTILE, Store
from report_runs import RunFolder, yes_no

from synthalign.pages import gallery, report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

HARNESS = """<!doctype html><iframe src="{address}" style="width: {width}px; height: 844px"></iframe><pre></pre><script>
const wait = () => new Promise((resume) => setTimeout(resume, 300));
document.querySelector("iframe").addEventListener("load", async (event) => {{
  const page = event.target.contentDocument, find = (id) => page.getElementById(id), said = [];
  const put = (id, value, event = "change") => {{
    find(id).value = value;
    find(id).dispatchEvent(new Event(event, {{ bubbles: true }}));
  }};
  const press = (key) => page.body.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true }}));
  const told = () => ({{ row: page.querySelector("#detail h2").textContent, count: find("count").textContent }});
  await wait();
  try {{ {script} }} catch (error) {{ said.push(String(error)); }}
  document.querySelector("pre").textContent = JSON.stringify(said);
}});
</script>"""


def dom_of(address: str, profile: Path, *more: str) -> str:
    """The document after its scripts have run."""
    assert CHROMIUM is not None
    flags = ["--headless", "--disable-gpu", "--dump-dom", "--virtual-time-budget=5000", f"--user-data-dir={profile}"]
    flags += ["--no-sandbox"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
    done = subprocess.run([CHROMIUM, *flags, *more, address], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def body(dom: str) -> str:
    """What is seen of a document, without the data that follow."""
    return dom[dom.index("<body") : dom.index('<script type="application/json"')]


def texts(markup: str) -> str:
    """The texts of some markup, one blank between them."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", markup)).replace("\u00a0", " ").split())


def use(page: Path, folder: Path, script: str, width: int = 1440) -> list:
    """Run a script against a page, as a person would use it; give what it said."""
    harness = folder / "harness.html"
    harness.write_text(HARNESS.format(address=page.as_uri(), width=width, script=script))
    dom = dom_of(harness.as_uri(), folder / "profile", "--allow-file-access-from-files")
    return json.loads(unescape(dom.partition("<pre>")[2].partition("</pre>")[0]))


def test_the_page_shows_the_row_that_the_address_names_and_hostile_text_as_text(tmp_path):
    store = Store(tmp_path / "store")
    store.land(range(40), chosen=HOSTILE, rejected=HOSTILE + " again")
    page = gallery.write(store.table(), tmp_path / "page.html").path
    dom = dom_of(f"{page.as_uri()}#kitchen-0031%2F0", tmp_path / "profile")
    seen = body(dom)
    assert "<title>broken" not in dom and "onerror=&quot;" not in seen and '<img src="x"' not in seen
    assert seen.count("&lt;img src=x onerror=") >= 3  # in the pair, and among the responses
    assert "<del>again</del>" in seen and "Which cup? 31" in seen
    assert seen.count('class="row"') < 40  # the list holds what is in view
    assert len(re.findall(r'<img [^>]*src="data:image/jpeg', seen)) > 3
    assert "<svg" in seen and "Margin of the pairs" in seen


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Forty answers at three evaluations: 12 are right at first, then 22, then 30; of the first 12 stay 7."""
    made = RunFolder(tmp_path_factory.mktemp("demo") / "fit")
    for epoch, (start, end) in enumerate([(0, 12), (3, 25), (5, 35)]):
        rows = [
            yes_no(
                n,
                "No" if start <= n < end else "Yes",
                image=made.image("cup.png"),
                kind="even" if n % 2 == 0 else "odd",
            )
            for n in range(40)
        ]
        unjudged = [yes_no(1, HOSTILE) | {"correct": None}]
        metrics = {
            "pope/n_unparsed": 2.0,
            "pope/accuracy": (end - start) / 40,
            "pope/n": 40.0,
            "pope/even/f1": 0.5,
            "pope/odd/f1": 0.25 * epoch,
            "pope/words": 9.5 + 2.5 * epoch,
        }
        made.sit(epoch, {"pope": rows, "mmhal": unjudged}, metrics)
    made.evals["pope"] = {
        "about": {"parser": HOSTILE},
        "legend": {
            "n_unparsed": {"better": "low", "percent": False, "headline": True},
            "accuracy": {"better": "high", "percent": True, "headline": True},
        },
    }
    made.evals["mmhal"] = {"about": {"judge": "none"}}
    (made.root / "metrics.csv").write_text("step,train/loss\n1,0.7\n2,0.6\n")
    return report.write(made.finish()).path


@pytest.fixture(scope="module")
def dom(run, tmp_path_factory):
    """The report, opened at an answer that nobody judged."""
    return dom_of(f"{run.as_uri()}#mmhal%2Frandom%2F1", tmp_path_factory.mktemp("profile"))


def test_the_report_sets_both_sides_beside_each_other(dom):
    seen = body(dom)
    said = texts(seen)
    assert "accuracy ↑ 30.0 % 75.0 % +45.0 pp better 40" in said
    assert "words 9.500 14.5 +5.0 40 n_ unparsed ↓ 2 2 0 40" in said  # counts last, and no digits that say nothing
    # 12 right at first, 30 at last, 7 of them the same
    assert "was right 7 still right 5 made wrong was wrong 23 made right 5 still wrong" in said
    p = 2 * sum(Fraction(comb(28, k), 2**28) for k in range(6))
    assert f"Of 28 changed answers 23 became right: p = {float(f'{float(p):.2g}')} " in said
    assert "even 0.500 0.500 0.000" in said and "odd 0.000 0.500 +0.500" in said
    assert "1 of 1 answers are unjudged : there is no figure for them" in said and "judge none" in said
    assert {"accuracy ↑, %, by epoch", "Loss, by optimizer step"} <= set(
        re.findall(r'aria-label="([^"]*?)\. From', seen)
    )


def test_the_report_shows_hostile_text_as_text(dom):
    assert "<title>broken" not in dom and '<img src="x"' not in body(dom)
    assert body(dom).count("&lt;img src=x onerror=") >= 2  # of the parser, and the reply


def test_a_run_with_a_single_evaluation_shows_its_figures_alone(tmp_path):
    folder = RunFolder(tmp_path / "run")
    rows = [yes_no(0, "no", kind="even"), yes_no(1, "yes", kind="odd")]
    folder.sit(0, {"pope": rows}, {"pope/accuracy": 0.5, "pope/even/accuracy": 1.0, "pope/odd/accuracy": 0.0})
    page = report.write(folder.finish()).path
    said = texts(body(dom_of(page.as_uri(), tmp_path / "profile")))
    assert "By type" in said and "false" not in said


def test_a_person_finds_the_answers_that_changed(run, tmp_path):
    script = """
      said.push(told());
      page.querySelector(".verdicts button.lost").click(); await wait(); said.push(told());
      press("j"); await wait(); said.push(told());
      put("change", ""); put("type", find("type").options[1].value); await wait(); said.push(told());
      put("search", "cup? 38", "input"); await wait(); said.push(told());
    """
    assert use(run, tmp_path, script) == [
        {"row": "pope/even/0", "count": "28 of 34 answers"},
        {"row": "pope/even/0", "count": "5 of 34 answers"},
        {"row": "pope/odd/1", "count": "5 of 34 answers"},
        {"row": "pope/even/0", "count": "17 of 34 answers"},
        {"row": "pope/even/38", "count": "1 of 34 answers"},
    ]


def test_any_evaluation_is_compared_with_any_other(run, tmp_path):
    script = """
      put("first", "1"); await wait();
      said.push(page.querySelector("#figures tbody").textContent, page.querySelector(".verdicts tbody").textContent);
      put("second", "1"); await wait(); said.push(page.querySelector(".verdicts tbody").textContent);
    """
    # 22 right then, 30 now, 20 of them the same
    assert use(run, tmp_path, script) == [
        "accuracy\u00a0↑55.0 %75.0 %+20.0 pp better40even/f10.5000.5000.00040odd/f10.2500.500+0.25040"
        "words12.014.5+2.540n_unparsed\u00a0↓22040",
        "was right20still right2made wrongwas wrong10made right8still wrong",
        "22right18wrong",
    ]


def test_a_phone_shows_the_whole_width_and_opens_an_answer_over_the_list(run, tmp_path):
    script = """
      said.push(page.documentElement.scrollWidth <= 360);
      said.push(getComputedStyle(find("detail")).display);
      page.querySelector(".row").click(); await wait();
      said.push(getComputedStyle(find("detail")).display);
      page.querySelector(".back").click(); await wait();
      said.push(getComputedStyle(find("detail")).display);
    """
    assert use(run, tmp_path, script, width=360) == [True, "none", "block", "none"]
