"""Whatever a model wrote stays data."""

import io
import json

from landed import HOSTILE

from synthalign.pages.markup import block, data, fill, text


def test_json_for_a_page_holds_no_bracket_that_could_end_it_and_says_the_same():
    written = data({"said": HOSTILE, "list": [1.5, None, "ü"]})
    assert "<" not in written
    assert json.loads(written) == {"said": HOSTILE, "list": [1.5, None, "ü"]}


def test_numbers_that_json_cannot_say_become_null():
    assert json.loads(data([float("nan"), {"a": (float("inf"), 1)}])) == [None, {"a": [None, 1]}]


def test_text_is_escaped_for_elements_and_attributes():
    assert text('<a href="x">&') == "&lt;a href=&quot;x&quot;&gt;&amp;"


def test_a_template_is_filled_by_texts_and_by_functions():
    out = io.StringIO()
    fill("<p>{{one}}</p>{{two}}.", {"one": "1 {{two}}", "two": lambda stream: stream.write("2")}, out)
    assert out.getvalue() == "<p>1 {{two}}</p>2."


def test_a_block_of_data_runs_nothing():
    assert block("r1", "{}") == '<script type="application/json" id="r1">{}</script>\n'
