"""A prompts file is read row by row, and its mistakes are named by line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthalign.tables import PromptFile, PromptRow


def write(path: Path, rows: list[dict[str, Any]], end: str = "\n") -> Path:
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode())
    return path


def row(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "prompt": f"a {name}", "question": "What?"} | more


ROWS = [row("cat"), row("猫", questions=["A?", "B?"]), row("Käse"), row("dog", category="animal")]
READ = [
    PromptRow("cat", "a cat", ("What?",)),
    PromptRow("猫", "a 猫", ("A?", "B?")),
    PromptRow("Käse", "a Käse", ("What?",)),
    PromptRow("dog", "a dog", ("What?",)),
]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n  \n"])
def test_rows_are_read_in_any_order_whatever_ends_their_lines(end, tmp_path):
    file = PromptFile(write(tmp_path / "prompts.jsonl", ROWS, end))
    assert list(file) == READ and len(file) == 4
    assert file[2] == READ[2]
    assert list(file.rows([3, 0, 0])) == [READ[3], READ[0], READ[0]]
    part = file.part(np.array([1, 3]))
    assert list(part) == [READ[1], READ[3]] and part[1] == READ[3] and len(part) == 2


def test_a_mark_at_the_beginning_and_an_array_are_read_alike(tmp_path):
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + write(tmp_path / "plain.jsonl", ROWS).read_bytes())
    array = tmp_path / "array.json"
    array.write_text(json.dumps(ROWS))
    for path in (marked, array):
        file = PromptFile(path)
        assert list(file) == READ and file[1] == READ[1] and list(file.rows([2, 1])) == [READ[2], READ[1]]


def test_each_row_gets_its_number(tmp_path):
    file = PromptFile(write(tmp_path / "prompts.jsonl", ROWS))
    assert file.numbers(lambda one: len(one.questions)).tolist() == [1, 2, 1, 1]
    assert file.numbers(lambda one: 2**64 - 1).dtype == np.uint64


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([*ROWS, row("cat"), row("Käse")], "line 5: id 'cat' stands twice; rows are joined by id"),
        ([*ROWS, row("dog"), row("cat"), row("dog")], "line 5: id 'dog' stands twice; rows are joined by id"),
        ([row("a"), row(3)], "line 2: 'id' must be text, found 3"),  # type: ignore[arg-type]
        ([row("a"), {"id": "b", "question": "What?"}], "line 2: 'prompt' must be text, found None"),
        ([row("a"), {"id": "b", "prompt": "a b"}], "line 2: expected 'question' (text) or 'questions'"),
        ([row("a", questions=[])], "line 1: expected 'question' (text) or 'questions'"),
        ([row("a", question=" ")], "line 1: the prompt or a question is empty"),
        ([row("a", question="<image> What?")], "line 1: leave '<image>' out of the question"),
        ([], "no prompts"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_line(rows, line, tmp_path):
    path = write(tmp_path / "prompts.jsonl", rows)
    with pytest.raises(ValueError) as caught:
        PromptFile(path)
    assert str(path) in str(caught.value) and line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"id": "a", "prompt": "b", "question": "c"}\n{"id": }\n', "line 2: malformed JSON"),
        (b'["a"]', "item 1: expected an object, found str"),
        (b'"a"\n', "line 1: expected an object, found str"),
        (b'{"id": "a", "prompt": "\xff"}\n', "not UTF-8 text at byte 23"),
        (b'{"id": "a", "prompt": "\\ud83d", "question": "c"}\n', "line 1: holds half of a surrogate pair"),
        (b"", "no prompts"),
    ],
)
def test_bytes_that_are_no_rows_are_named(content, line, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        PromptFile(path)
    assert str(path) in str(caught.value) and line in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no such file: .*prompts\.jsonl"):
        PromptFile(tmp_path / "prompts.jsonl")


def test_a_file_that_changes_under_a_run_is_noticed(tmp_path):
    path = write(tmp_path / "prompts.jsonl", ROWS)
    file = PromptFile(path)
    write(path, [row("a much longer name than before"), *ROWS])
    with pytest.raises(ValueError, match="has changed since this run began"):
        list(file)


def test_a_file_that_is_gone_is_one_line(tmp_path):
    path = write(tmp_path / "prompts.jsonl", ROWS)
    file = PromptFile(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"prompts\.jsonl cannot be read \(No such file or directory\)$"):
        list(file)
