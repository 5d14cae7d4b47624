"""Answers are joined by id, all are counted, and those worth a look are shown."""

import pytest
from report_runs import RunFolder, yes_no

from synthalign.pages.report_rows import read_rows
from synthalign.pages.report_run import read_run

ROOM = 1e6


def rows_of(folder, room=ROOM):
    return read_rows(read_run(folder)[1], room)


def test_answers_are_joined_by_id_whatever_their_order(tmp_path):
    run = RunFolder(tmp_path)
    run.sit(0, {"pope": [yes_no(1, "Yes", margin=2.0), yes_no(2, "No"), yes_no(3, "Yes")]}, {})
    run.sit(1, {"pope": [yes_no(3, "Yes"), yes_no(2, "Yes"), yes_no(1, "No", margin=-1.0)]}, {})
    found = rows_of(run.finish())
    assert {row.id: (row.verdicts, row.at) for row in found.rows} == {
        "random/1": ("01", [0, 1]),
        "random/2": ("10", [0, 1]),
        "random/3": ("00", [0, 0]),  # the same answer twice is kept once
    }
    assert found.rows[0].margins == [2.0, -1.0]
    assert found.rows[0].answers[1] == {"reply": "No", "truncated": False, "answer": "no"}


def test_what_was_right_every_time_is_counted_and_not_shown(tmp_path):
    run = RunFolder(tmp_path)
    for epoch in (0, 1):
        kinds = [yes_no(n, "No", kind=kind) for kind in ("random", "popular") for n in range(5)]
        run.sit(epoch, {"pope": [*kinds, yes_no(9, "Yes" if epoch else "No")]}, {})
    found = rows_of(run.finish())
    assert [row.id for row in found.rows] == ["random/9"]
    assert found.patterns == {"pope": {"random": {"11": 5, "10": 1}, "popular": {"11": 5}}}


def test_a_question_of_some_evaluations_only_is_shown_as_not_asked_in_the_others(tmp_path):
    run = RunFolder(tmp_path)
    run.sit(0, {"pope": [yes_no(1, "No")]}, {})
    run.sit(1, {"pope": [yes_no(1, "No"), yes_no(2, "No")]}, {})
    run.sit(2, {"pope": [yes_no(1, "No")]}, {})
    [row] = rows_of(run.finish()).rows
    assert (row.id, row.verdicts, row.at) == ("random/2", "-1-", [None, 0, None])


def test_an_answer_that_nobody_judged_is_neither_right_nor_wrong(tmp_path):
    run = RunFolder(tmp_path)
    run.sit(0, {"mmhal": [yes_no(1, "No") | {"correct": None}]}, {})
    found = rows_of(run.finish())
    assert found.rows[0].verdicts == "?" and found.silent == []


def test_answers_of_an_older_version_say_nothing_of_right_and_wrong(tmp_path):
    run = RunFolder(tmp_path)
    old = {key: value for key, value in yes_no(1, "No").items() if key != "correct"}
    run.sit(0, {"captions": [old], "pope": [yes_no(1, "No")]}, {})
    found = rows_of(run.finish())
    assert found.silent == ["captions"] and found.rows[0].verdicts == "?"


def many(folder, epochs=4, count=300):
    run = RunFolder(folder)
    for epoch in range(epochs):
        rows = [yes_no(n, "No" if (n + epoch) % 3 else "Yes") | {"reply": f"{n} {epoch} " * 20} for n in range(count)]
        run.sit(epoch, {"pope": rows}, {})
    return run.finish()


def test_too_little_room_leaves_the_first_and_the_last_and_says_so(tmp_path):
    folder = many(tmp_path)
    assert rows_of(folder).times == [0, 1, 2, 3] and rows_of(folder).notes == []
    found = rows_of(folder, 240_000)
    assert found.times == [0, 3] and {len(row.verdicts) for row in found.rows} == {2}
    assert "only the first and the last are compared" in found.notes[0]


def test_even_less_room_leaves_a_sample_of_each_change_and_all_counts(tmp_path):
    folder = many(tmp_path, count=900)
    found, again = rows_of(folder, 40_000), rows_of(folder, 40_000)
    assert found.rows == again.rows
    assert found.patterns == {"pope": {"random": {"00": 300, "11": 600}}}
    assert len(found.rows) in (20, 50) and "of the 300 answers" in found.notes[-1]
    assert [row.id for row in found.rows] == sorted((row.id for row in found.rows), key=lambda name: int(name[7:]))


def test_missing_replies_are_named(tmp_path):
    run = RunFolder(tmp_path)
    run.sit(0, {"pope": [yes_no(1, "No")]}, {})
    run.sit(1, {}, {})
    found = rows_of(run.finish())
    assert found.notes == ["There are no replies of epoch-001: the folder is gone."]
    assert found.rows[0].verdicts == "1-"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: malformed JSON"),
        ("[]", "line 2: expected an object"),
        ('{"id": 3}', "line 2: expected an object"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    run = RunFolder(tmp_path)
    run.sit(0, {"pope": [yes_no(1, "No")]}, {})
    with (tmp_path / "samples/epoch-000/pope.jsonl").open("a") as out:
        out.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        rows_of(run.finish())


def test_an_id_that_stands_twice_is_no_answer(tmp_path):
    run = RunFolder(tmp_path)
    run.sit(0, {"pope": [yes_no(1, "No"), yes_no(1, "Yes")]}, {})
    with pytest.raises(ValueError, match="'random/1' stands twice"):
        rows_of(run.finish())
