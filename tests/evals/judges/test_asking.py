import hashlib
import subprocess

import pytest

from synthalign.evals.judges.asking import FIELDS, PROMPT, asked, hash_of, prompt_in
from synthalign.evals.mmhal.benchmark import parse_rating

ROW = ([["Cup", "Table"]], ["What colour is the cup?"], ["Red."], ["It is {red}."])


def test_our_prompt_holds_every_field_once_and_all_seven_ratings():
    (text,) = asked(PROMPT, *ROW)
    assert text.endswith(
        "Image contents: Cup, Table\nQuestion: What colour is the cup?\nPerson's answer: Red.\n"
        "Assistant's answer: It is {red}.\n"
    )
    assert all(PROMPT.count(f"{{{name}}}") == 1 for name in FIELDS)
    assert all(f"\n{rating} = " in PROMPT for rating in range(7))


def test_what_our_prompt_asks_for_is_what_the_official_parse_reads():
    shown = [line for line in PROMPT.split("\n") if line.startswith("Rating: ")]
    assert [parse_rating(line).score for line in shown] == [0, 4, 2, 6]
    assert all(parse_rating(line).parsed for line in shown)


def test_a_prompt_of_ones_own_has_named_fields_or_four_empty_ones(tmp_path):
    named, places = tmp_path / "named.txt", tmp_path / "places.txt"
    named.write_text("{answer}|{reference}|{question}|{contents}|{{}}")
    places.write_text("### {}\n{}\n{}\n{}\n")
    assert asked(prompt_in(named), *ROW) == ["It is {red}.|Red.|What colour is the cup?|Cup, Table|{}"]
    assert asked(prompt_in(places), *ROW) == ["### Cup, Table\nWhat colour is the cup?\nRed.\nIt is {red}.\n"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{contents} {question} {reference}", r"leaves out {answer}; it must hold {contents}, {question}"),
        ("{} {} {}", "leaves out {answer}"),
        ("{} {} {} {} {}", "cannot be filled in"),
        ("{contents} {question} {reference} {answer} {image}", "cannot be filled in"),
        ("{contents} {question} {reference} {answer} {", "cannot be filled in"),
        ("{contents.x} {question} {reference} {answer}", "cannot be filled in"),
        ("{contents[x]} {question} {reference} {answer}", "cannot be filled in"),
        ("", "leaves out {contents}"),
    ],
)
def test_a_prompt_without_its_fields_is_refused_in_one_line(tmp_path, text, complaint):
    file = tmp_path / "prompt.txt"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        prompt_in(file)
    assert complaint in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_prompt_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no prompt file"):
        prompt_in(tmp_path / "absent.txt")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="not UTF-8 text at byte 0"):
        prompt_in(tmp_path / "bytes")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_hash_is_that_of_the_file(tmp_path, end):
    file = tmp_path / "prompt.txt"
    file.write_bytes(f"Rate:{end}{{}} {{}} {{}} {{}}{end}é".encode())
    summed = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout
    assert hash_of(prompt_in(file)) == summed[:12] == hashlib.sha256(file.read_bytes()).hexdigest()[:12]
