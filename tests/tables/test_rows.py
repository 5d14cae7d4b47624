"""Rows of JSON: a mistake in them is one line that says where."""

import json
import time
from pathlib import Path

import pytest

from synthalign.tables import json_rows, json_whole, text_in


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"id": "a"}\n\n{"id": \n', "line 3: malformed JSON: Expecting value"),
        ('{"id": "a"} {"id": "b"}\n', "line 1: malformed JSON: Extra data"),
        ('[\n{"id": "a"},\n{"id" "b"}\n]', "line 3: malformed JSON: Expecting ':' delimiter"),
        ('[{"id": "a"},\n', "line 2: malformed JSON"),
        ('[{"id": "a"}, 3]', "item 2: expected an object, found int"),
        ('{"id": "a"}\n[1]\n', "line 2: expected an object, found list"),
        ('{"id": "\\ud83d\\ude00"}\n{"id": "\\ud83d"}\n', "line 2: holds half of a surrogate pair"),
    ],
)
def test_malformed_json_names_its_line(text, line, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        list(json_rows(path))
    assert str(caught.value).startswith(f"{path}, {line}") and "\n" not in str(caught.value)


def test_text_that_is_not_utf8_or_not_there_is_one_line(tmp_path):
    path = tmp_path / "rows.json"
    with pytest.raises(ValueError, match=r"^no such file: .*rows\.json$"):
        list(json_rows(path))
    path.write_bytes('{"id": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"rows\.json: not UTF-8 text at byte 8$"):
        list(json_rows(path))
    with pytest.raises(ValueError, match=r"is a folder, not a file$"):
        text_in(tmp_path)
    with pytest.raises(ValueError, match=r"^no such file: xxx"):
        text_in(Path("x" * 300))


def test_a_file_that_is_one_value_is_read_whole_or_its_line_is_named(tmp_path):
    path = tmp_path / "whole.json"
    path.write_text('\ufeff{"a": [1,\n2]}', encoding="utf-8")
    assert json_whole(path) == {"a": [1, 2]}
    for text, said in (('{"a":\n]', r", line 2: malformed JSON"), ('{"a": "\\ud83d"}', ": holds half of a surrogate")):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"whole\.json{said}"):
            json_whole(path)


def test_lines_end_at_newlines_only_and_a_byte_order_mark_is_no_text(tmp_path):
    rows = [{"id": "a\u2028b\x85c"}, {"id": "d"}]
    text = "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "rows.jsonl").write_bytes(text.encode())
    assert [row for _, row in json_rows(tmp_path / "rows.jsonl")] == rows


def test_the_time_an_array_takes_grows_with_its_length_and_half_characters_are_found_in_it(tmp_path):
    """It once grew with the square: twenty megabytes took minutes."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"id": str(number), "text": "x" * 1000} for number in range(20_000)]))
    start = time.process_time()
    assert sum(1 for _ in json_rows(path)) == 20_000
    assert time.process_time() - start < 20
    path.write_text('[{"id": "\\ud83d\\ude00"}, {"id": "\\ud83d"}]')
    with pytest.raises(ValueError, match=r"item 2: holds half of a surrogate pair"):
        list(json_rows(path))
