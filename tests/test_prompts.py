import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import writers
from servers import Answer, Loopback, completion

from synthalign.cli import main
from synthalign.clients import ServedLLM
from synthalign.prompts import CATEGORIES, STARTER, Repeats, Scene, Written, ask, copy_starter, read, write
from synthalign.tables import read_prompts
from synthalign.types import Drop, Reply

PROMPT = "Two red cups and a blue jug stand on a wooden table beside an open window."
GOOD = f"SCENE: {PROMPT}\nQUESTION: How many cups are there?"


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _write(url: str, out: Path, **settings: Any) -> Written:
    writer = ServedLLM(base_url=url, model="m", max_retries=0, timeout_s=20)
    given: dict[str, Any] = {"categories": ["home", "art"], "per_category": 12, "tries": 9} | settings
    return write(writer, out, **given)


# What is asked, and how it is read


def test_a_request_names_its_topic_and_as_many_lines_as_are_read():
    for category in CATEGORIES:
        text = ask(category, 0, 0, 3)
        assert CATEGORIES[category] in text
        assert (text.count("\nSCENE:"), text.count("\nQUESTION:")) == (1, 3)


def test_requests_of_one_category_differ_and_come_again():
    asked = [ask("home", attempt, 0, 1) for attempt in range(50)]
    assert len(set(asked)) >= 48
    assert asked == [ask("home", attempt, 0, 1) for attempt in range(50)]
    assert ask("home", 0, 1, 1) != ask("home", 0, 0, 1)


def test_the_right_form_is_read():
    assert read(Reply(GOOD), 1) == Scene(PROMPT, ("How many cups are there?",))
    spaced = f'\n  SCENE:   "{PROMPT}"  \n\nQUESTION: What is   blue?\nQUESTION: Describe the picture.\n'
    assert read(Reply(spaced), 2) == Scene(PROMPT, ("What is blue?", "Describe the picture."))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no_scene"),
        ("A red cup.", "no_scene"),
        (f"{GOOD}\nSCENE: {PROMPT}", "no_scene"),
        (f"SCENE: {PROMPT}", "wrong_questions"),
        (f"{GOOD}\nQUESTION: Is there a jug?", "wrong_questions"),
        (f"Sure! Here it is:\n{GOOD}", "other_lines"),
        (f"{GOOD}\nI hope this helps.", "other_lines"),
        ("QUESTION: How many cups are there?\nSCENE: " + PROMPT, "other_lines"),
        ("SCENE: <the prompt>\nQUESTION: <the question>", "placeholder"),
        (f"SCENE: {PROMPT}\nQUESTION: What is [object]?", "placeholder"),
        ("SCENE: A red cup.\nQUESTION: What is red?", "scene_length"),
        (f"SCENE: {'very ' * 61}\nQUESTION: What is red?", "scene_length"),
        (f"SCENE: {PROMPT}\nQUESTION: how many cups", "question_form"),
        (f"SCENE: {PROMPT}\nQUESTION: ?", "question_form"),
        (f"SCENE: {PROMPT}\nQUESTION: {'what is ' * 21}?", "question_form"),
        (f"SCENE: {PROMPT}\nQUESTION: {PROMPT}", "same_question"),
    ],
)
def test_a_reply_in_another_form_is_dropped_with_its_reason(text, reason):
    outcome = read(Reply(text), 1)
    assert isinstance(outcome, Drop)
    assert outcome.reason == reason


def test_two_questions_must_differ_in_their_words():
    twice = f"SCENE: {PROMPT}\nQUESTION: What is red?\nQUESTION: what is RED ?"
    assert read(Reply(twice), 2) == Drop("same_question", "two questions are alike, or one is the prompt")


def test_a_reply_that_was_cut_off_is_dropped_even_in_the_right_form():
    assert read(Reply(GOOD, truncated=True), 1) == Drop("cut_off", "max_new_tokens ended the reply")


# Repeats


def test_a_prompt_repeats_one_of_the_same_words():
    known = Repeats()
    known.add("a", "Two red cups stand on a wooden table.")
    assert known.find("two RED cups -- stand on a wooden table!") == Drop("duplicate", "a")
    assert known.find("Two dogs sleep in front of a blue door.") is None


def test_two_words_of_twenty_make_a_near_duplicate_and_three_do_not():
    said = [f"word{n}" for n in range(20)]  # 18 runs of three
    known = Repeats()
    known.add("a", " ".join(said))
    for position, change in ((4, None), (9, Drop("near_duplicate", "a, 0.50 in common"))):
        said[position] = "other"
        if change:  # 12 runs of 24 are shared
            assert known.find(" ".join(said)) == change
    said[14] = "other"  # 9 of 27
    assert known.find(" ".join(said)) is None


def test_the_index_finds_what_comparing_all_pairs_finds():
    def runs(text: str) -> set:
        said = text.split()
        return {tuple(said[n : n + 3]) for n in range(max(1, len(said) - 2))}

    draw, repeated = Random(0), 0
    for _ in range(100):
        known = Repeats()
        kept: list[str] = []
        for number in range(20):
            text = [draw.choice("abcdefgh") for _ in range(draw.randint(1, 14))]
            if kept and draw.random() < 0.5:
                text = draw.choice(kept).split()
                text[draw.randrange(len(text))] = draw.choice("abcdefgh")
            new = " ".join(text)
            alike = any(len(runs(new) & runs(old)) / len(runs(new) | runs(old)) >= 0.4 for old in kept)
            assert (known.find(new) is not None) == alike
            repeated += alike
            if not alike:
                known.add(str(number), new)
                kept.append(new)
    assert 200 < repeated < 1800


# Writing


def test_a_served_model_writes_as_many_as_asked_and_every_drop_is_counted(tmp_path, capsys):
    command = ["prompts", str(tmp_path), "--served-model", "m", "--categories", "home", "art", "--per-category", "12"]
    with Loopback(writers.good_or_bad) as server:
        main([*command, "--server", server.url, "--questions", "2", "--tries", "9"])
    rows = read_prompts(tmp_path / "prompts.jsonl")
    assert Counter(row.id for row in rows) == Counter(f"{c}-{n:04d}" for c in ("home", "art") for n in range(1, 13))
    assert all(len(row.questions) == 2 for row in rows)
    assert {row["category"] for row in _rows(tmp_path / "prompts.jsonl")} == {"home", "art"}
    _, *chunks = _rows(tmp_path / "attempts.jsonl")
    reasons = Counter(drop["reason"] for chunk in chunks for drop in chunk["dropped"])
    assert {"other_lines", "cut_off"} <= reasons.keys() <= {"other_lines", "cut_off", "duplicate", "near_duplicate"}
    assert len(server.requests) == 24 + reasons.total() == sum(sum(chunk["attempts"].values()) for chunk in chunks)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"24 prompts in {tmp_path}/prompts.jsonl; dropped {reasons.total()} (")
    assert all(f"{reason} {count}" in last for reason, count in reasons.items())


def test_one_question_is_a_text_and_a_category_is_a_column(tmp_path):
    with Loopback(writers.good_or_bad) as server:
        _write(server.url, tmp_path, per_category=1)
    assert [list(row) for row in _rows(tmp_path / "prompts.jsonl")] == [["id", "category", "prompt", "question"]] * 2


def test_cut_at_any_byte_it_ends_with_the_bytes_of_an_undisturbed_run(tmp_path):
    with Loopback(writers.good_or_bad) as server:
        _write(server.url, tmp_path / "whole", per_category=4)
        journal = (tmp_path / "whole" / "attempts.jsonl").read_bytes()
        prompts = (tmp_path / "whole" / "prompts.jsonl").read_bytes()
        num_requests = len(server.requests)
        ends = [n + 1 for n, byte in enumerate(journal) if byte == ord("\n")]
        assert len(ends) >= 3
        for number, cut in enumerate([0, 5, *(end + part for end in ends[:2] for part in (-1, 0, 9)), len(journal)]):
            out = tmp_path / str(number)
            out.mkdir()
            (out / "attempts.jsonl").write_bytes(journal[:cut])
            _write(server.url, out, per_category=4)
            assert (out / "attempts.jsonl").read_bytes() == journal
            assert (out / "prompts.jsonl").read_bytes() == prompts
        before = len(server.requests)
        _write(server.url, tmp_path / "whole", per_category=4)
    assert before > num_requests
    assert len(server.requests) == before  # what was finished asks for nothing


def test_killed_in_the_midst_it_goes_on_and_ends_the_same(tmp_path):
    settings = ["--served-model", "m", "--per-category", "14", "--tries", "9"]
    settings += ["--categories", "art", "home", "nature", "plant", "urban"]
    running: list[subprocess.Popen] = []

    def answer(number: int, body: dict) -> Answer:
        if number == 80 and running:  # in the second chunk of 64
            running[0].kill()
        return writers.good_or_bad(number, body)

    with Loopback(answer) as server:
        command = [
            sys.executable,
            "-m",
            "synthalign",
            "prompts",
            str(tmp_path / "a"),
            "--server",
            server.url,
            *settings,
        ]
        running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        assert running[0].wait() == -9
        assert len((tmp_path / "a" / "attempts.jsonl").read_bytes().splitlines()) == 2
        assert not (tmp_path / "a" / "prompts.jsonl").exists()
        for folder in ("a", "b"):
            main(["prompts", str(tmp_path / folder), "--server", server.url, *settings])
    for name in ("attempts.jsonl", "prompts.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_more_prompts_are_added_to_those_there_are(tmp_path):
    with Loopback(writers.good_or_bad) as server:
        _write(server.url, tmp_path, per_category=5)
        before = (tmp_path / "prompts.jsonl").read_bytes()
        _write(server.url, tmp_path, per_category=8, categories=["art", "home", "plant"])
    after = (tmp_path / "prompts.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(after.splitlines()) == 24


def test_another_seed_writes_other_prompts_and_needs_another_folder(tmp_path):
    with Loopback(writers.good_or_bad) as server:
        _write(server.url, tmp_path / "a", per_category=3)
        _write(server.url, tmp_path / "b", per_category=3, seed=1)
        with pytest.raises(ValueError, match=r"line 1: these prompts were made with other settings \(seed\): name"):
            _write(server.url, tmp_path / "a", per_category=3, seed=1)
    assert (tmp_path / "a/prompts.jsonl").read_bytes() != (tmp_path / "b/prompts.jsonl").read_bytes()


@pytest.mark.parametrize("content", [b"my notes", b"my notes\nand more", b'{"seed": 7}\n{"rows": [', b'{"seed": 7}'])
def test_a_journal_that_somebody_else_wrote_is_left_as_it_is(content, tmp_path):
    (tmp_path / "attempts.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"attempts\.jsonl, line 1: (malformed|these prompts were made with other)"):
        _write("http://127.0.0.1:9/v1", tmp_path)
    assert (tmp_path / "attempts.jsonl").read_bytes() == content


def test_of_two_runs_in_one_folder_the_second_to_write_is_stopped_and_spoils_nothing(tmp_path):
    with Loopback(writers.good_or_bad) as inner:

        def answer(number: int, body: dict) -> Answer:
            if number == 0:  # while it asks, another run begins and ends
                _write(inner.url, tmp_path, per_category=4)
            return writers.good_or_bad(number, body)

        with Loopback(answer) as server, pytest.raises(RuntimeError, match="another run has written to it since"):
            _write(server.url, tmp_path, per_category=4)
        journal, prompts = (tmp_path / "attempts.jsonl").read_bytes(), (tmp_path / "prompts.jsonl").read_bytes()
        _write(inner.url, tmp_path, per_category=4)
    assert len(prompts.splitlines()) == 8
    assert (tmp_path / "attempts.jsonl").read_bytes() == journal
    assert (tmp_path / "prompts.jsonl").read_bytes() == prompts


@pytest.mark.parametrize("journal", [False, True])
def test_prompts_that_somebody_else_wrote_or_changed_are_left_alone(journal, tmp_path):
    with Loopback(writers.good_or_bad) as server:
        if journal:
            _write(server.url, tmp_path, per_category=3)
        (tmp_path / "prompts.jsonl").write_text('{"id": "mine"}\n')
        with pytest.raises(ValueError, match="was not written by this command, or was changed since"):
            _write(server.url, tmp_path, per_category=3)
    assert (tmp_path / "prompts.jsonl").read_text() == '{"id": "mine"}\n'
    assert (tmp_path / "attempts.jsonl").exists() == journal


def test_what_is_missing_is_reported_and_not_padded(tmp_path):
    def answer(number: int, body: dict) -> Answer:
        art = CATEGORIES["art"] in body["messages"][-1]["content"]
        return completion("I cannot do that.") if art else writers.good_or_bad(number, body)

    with Loopback(answer) as server:
        written = _write(server.url, tmp_path, per_category=3, tries=4)
    assert (written.num_prompts, written.missing) == (3, {"art": 3})
    assert written.dropped["no_scene"] == 12
    assert "still missing: art 3" in str(written)
    assert {row["category"] for row in _rows(tmp_path / "prompts.jsonl")} == {"home"}


def test_a_writer_that_says_the_same_again_and_again_is_asked_no_more_than_allowed(tmp_path):
    with Loopback(lambda n, body: completion(GOOD)) as server:
        written = _write(server.url, tmp_path, per_category=5, tries=2)
    assert (written.num_prompts, written.missing) == (1, {"home": 4, "art": 5})
    assert written.dropped == {"duplicate": 19}


def test_prompts_that_came_before_a_server_failed_are_kept(tmp_path):
    def answer(number: int, body: dict) -> Answer:
        return Answer(400, b'{"detail": "closed"}') if number >= 70 else writers.good_or_bad(number, body)

    with Loopback(answer) as server, pytest.raises(RuntimeError, match="status 400: closed"):
        _write(server.url, tmp_path, per_category=60)
    assert 0 < len(_rows(tmp_path / "prompts.jsonl")) < 64


def test_a_model_that_follows_no_instructions_is_an_error_with_counts(tmp_path, capsys):
    model = writers.build_llm(tmp_path / "llm")
    command = ["prompts", str(tmp_path / "out"), "--model", str(model), "--categories", "home", "art"]
    with pytest.raises(SystemExit) as left:
        main([*command, "--per-category", "2", "--tries", "2", "--max-new-tokens", "8", "--device", "cpu"])
    assert left.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("synthalign: error: none of 8 replies could be used (")
    assert "cut_off" in error
    assert error.endswith("a model that follows instructions is needed")
    assert not (tmp_path / "out" / "prompts.jsonl").exists()
    _, chunk, *_ = _rows(tmp_path / "out" / "attempts.jsonl")
    assert {"category", "attempt", "reason", "detail", "reply"} == chunk["dropped"][0].keys()


def test_a_hopeless_writer_is_given_up_early(tmp_path):
    with Loopback(lambda n, body: completion("no")) as server, pytest.raises(ValueError, match="none of 256 replies"):
        _write(server.url, tmp_path, per_category=1000)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"per_category": 0}, "per_category must be >= 1"),
        ({"num_questions": 0}, "num_questions must be >= 1"),
        ({"tries": 0}, "tries must be >= 1"),
        ({"categories": ["kitchen"]}, "no category kitchen: there are art, industrial"),
        ({"categories": []}, "at least one"),
        ({"categories": ["art", "art"]}, "each category once"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(setting, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        _write("http://127.0.0.1:9/v1", tmp_path, **setting)


def test_a_file_is_no_folder_to_write_into(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "prompts.jsonl"):
        with pytest.raises(ValueError, match=f"{name} must be a folder"):
            _write("http://127.0.0.1:9/v1", tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} must be a folder"):
            copy_starter(tmp_path / name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "who is to write?"),
        (["--model", "m", "--server", "http://x"], "who is to write?"),
        (["--server", "http://127.0.0.1:9/v1"], "--server needs --served-model"),
    ],
)
def test_the_door_asks_for_one_writer(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["prompts", str(tmp_path), *flags])
    assert message in capsys.readouterr().err


# The starter set


def test_the_starter_set_has_four_different_scenes_of_each_category():
    rows, known = _rows(STARTER), Repeats()
    assert Counter(row["category"] for row in rows) == dict.fromkeys(CATEGORIES, 4)
    assert [row["id"] for row in rows] == [f"{category}-{n:04d}" for category in CATEGORIES for n in range(1, 5)]
    for row in rows:
        assert 12 <= len(row["prompt"].split()) <= 30
        assert known.find(row["prompt"]) is None
        known.add(row["id"], row["prompt"])


def test_the_starter_set_would_pass_as_written_by_a_model():
    questions: list[str] = []
    for row in read_prompts(STARTER):
        asked = "".join(f"\nQUESTION: {question}" for question in row.questions)
        assert read(Reply(f"SCENE: {row.prompt}{asked}"), len(row.questions)) == Scene(row.prompt, row.questions)
        questions += row.questions
    assert len(set(questions)) == len(questions)
    assert {len(row.questions) for row in read_prompts(STARTER)} == {1, 2}


def test_the_starter_set_is_copied_and_overwrites_nothing(tmp_path, capsys):
    for _ in range(2):
        main(["prompts", str(tmp_path / "new"), "--starter"])
    assert (tmp_path / "new" / "prompts.jsonl").read_bytes() == STARTER.read_bytes()
    assert f"{tmp_path}/new/prompts.jsonl" in capsys.readouterr().out
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="holds other prompts"):
        copy_starter(tmp_path)
