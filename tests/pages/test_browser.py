"""The page in a real browser, where there is one."""

import os
import re
import shutil
import subprocess

import pytest
from landed import HOSTILE, Store

from synthalign.pages.gallery import write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def dom_of(address: str, profile: str) -> str:
    """The document after its scripts have run."""
    assert CHROMIUM is not None
    flags = ["--headless", "--disable-gpu", "--dump-dom", "--virtual-time-budget=2000", f"--user-data-dir={profile}"]
    flags += ["--no-sandbox"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
    done = subprocess.run([CHROMIUM, *flags, address], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def test_the_page_shows_the_row_that_the_address_names_and_hostile_text_as_text(tmp_path):
    store = Store(tmp_path / "store")
    store.land(range(40), chosen=HOSTILE, rejected=HOSTILE + " again")
    page = write(store.table(), tmp_path / "page.html").path
    dom = dom_of(f"{page.as_uri()}#kitchen-0031%2F0", str(tmp_path / "profile"))
    seen = dom[dom.index("<body") : dom.index('<script type="application/json"')]
    assert "<title>broken" not in dom and "onerror=&quot;" not in seen and '<img src="x"' not in seen
    assert seen.count("&lt;img src=x onerror=") >= 3  # in the pair, and among the responses
    assert "<del>again</del>" in seen and "Which cup? 31" in seen
    assert seen.count('class="row"') < 40  # the list holds what is in view
    assert len(re.findall(r'<img [^>]*src="data:image/jpeg', seen)) > 3
    assert "<svg" in seen and "Margin of the pairs" in seen
