"""An export is there as a whole or not at all, and replaces nothing but an older one."""

import os

from exported_runs import refusal

from synthalign.export import write


def test_an_older_export_is_replaced_and_anything_else_stays(run, tmp_path, capsys):
    out = write(run, tmp_path / "out").path
    (out / "README.md").write_text("mine")
    write(run, out, merged=True)
    assert "mine" not in (out / "README.md").read_text() and not (out / "adapter_config.json").exists()
    (out / "notes.txt").touch()
    before = sorted(out.iterdir())
    line = refusal(capsys, run, out)
    assert f"{out} exists already, and notes.txt in it is no part of an older export" in line
    assert sorted(out.iterdir()) == before
    (tmp_path / "empty").mkdir()
    (tmp_path / ".empty.part" / "of a killed export").mkdir(parents=True)
    write(run, tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "fit", "out"]


def test_an_export_that_fails_leaves_the_older_one_and_nothing_else(run, tmp_path, monkeypatch, capsys):
    out = write(run, tmp_path / "out").path
    before = {path: path.read_bytes() for path in out.iterdir()}
    (run / "dropped.jsonl").write_text("{")  # what the card reads, at the end
    assert "dropped.jsonl is not what a run writes" in refusal(capsys, run, out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit", "out"]


def test_a_first_export_that_fails_leaves_no_empty_folder(run, capsys):
    (run / "dropped.jsonl").write_text("{")
    assert "dropped.jsonl is not what a run writes" in refusal(capsys, run)
    assert not (run / "export").exists()


def test_what_others_may_read_is_said_by_the_umask(run, tmp_path):
    mask = os.umask(0o027)
    try:
        out = write(run, tmp_path / "above" / "out").path
    finally:
        os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o640}
    assert {folder.stat().st_mode & 0o777 for folder in (out, out.parent)} == {0o750}


def test_a_disk_that_refuses_is_one_line(run, capsys):
    assert "cannot be written (No such file or directory)" in refusal(capsys, run, "/proc/nowhere/out")
