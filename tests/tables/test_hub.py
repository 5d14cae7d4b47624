"""Sets on the hub: a stand-in for it on this machine takes what is pushed; where there is none, it is one line."""

import base64
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import pytest
from pair_files import TWO, authors, write_images, write_json

from synthalign.cli import main
from synthalign.tables import push_folder, read_pairs
from synthalign.tables.hub import hub_folder


class Hub(ThreadingHTTPServer):
    """Knows one dataset, and keeps the files that are committed to it."""

    def __init__(self, private: bool) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.private, self.files, self.asked = private, {}, []  # type: ignore[var-annotated]
        self.sent: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self._send(self.server.files[self.path.partition(f"/resolve/{'0' * 40}/")[2]])
            return
        if "/tree/" in self.path:
            sizes = {path: len(content) for path, content in self.server.files.items()}
            self._answer([{"type": "file", "path": path, "size": sizes[path], "oid": "2" * 40} for path in sizes])
            return
        self._answer({"id": "me/pairs", "private": self.server.private, "sha": "0" * 40})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"{self.server.address}/datasets/me/pairs"
        if self.path == "/api/repos/create":
            self.server.asked.append(json.loads(body))
            self._answer({"url": address, "name": "me/pairs"})
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del self.server.files[line["value"]["path"]]
            self._answer({"commitUrl": f"{address}/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True})
        else:
            self._answer({"isValid": True})

    def _answer(self, value: Any) -> None:
        self._send(json.dumps(value).encode())

    def _send(self, body: bytes) -> None:
        self.server.sent.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", hashlib.sha1(body).hexdigest())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(private=getattr(request, "param", True))
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    files = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = write_images(tmp_path / "in")
    several = authors(*TWO[0]) | {"image": ["images/red.png", "images/blue.png"]}
    return write_json(folder / "pairs.json", [*(authors(*row) for row in TWO), several])


def test_a_pushed_folder_is_there_file_by_file_without_what_was_left_out(hub, pairs, tmp_path, capsys):
    out = tmp_path / "out"
    main(["convert", str(pairs), str(out), "--format", "reference", "--push", "me/pairs", "--private"])
    assert (hub.asked[0]["type"], hub.asked[0]["visibility"]) == ("dataset", "private")
    assert set(hub.files) == {"README.md", "pairs.json", "images/red.png", "images/blue.png"}
    assert all((out / name).read_bytes() == content for name, content in hub.files.items())
    assert (out / "dropped.jsonl").is_file()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{out} and {hub.address}/datasets/me/pairs: 2 pairs; dropped 1 (several_images 1)"


def test_shards_of_a_larger_set_that_was_pushed_before_do_not_stay_among_the_new(hub, pairs, tmp_path):
    hub.files |= {"train-00000.parquet": b"old", "train-00007.parquet": b"old", "notes.md": b"mine"}
    main(["convert", str(pairs), str(tmp_path / "out"), "--format", "trl", "--push", "me/pairs"])
    assert set(hub.files) == {"README.md", "train-00000.parquet", "notes.md"}
    assert hub.files["train-00000.parquet"] == (tmp_path / "out" / "train-00000.parquet").read_bytes()


@pytest.mark.parametrize("hub", [False], indirect=True)
def test_what_is_to_be_private_never_goes_into_a_public_dataset(hub, pairs, tmp_path):
    with pytest.raises(ValueError, match=r"^not pushed: me/pairs exists and is public; the files are in .*in$"):
        push_folder(pairs.parent, "me/pairs", private=True)
    assert hub.files == {}


def test_without_the_hub_the_files_stay_and_it_is_one_line(pairs, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(pairs), str(out), "--format", "reference", "--push", "me/pairs"])
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("synthalign: error: not pushed to me/pairs (") and line.endswith(f"the files are in {out}")
    assert len(read_pairs(out).rows) == 2


@pytest.mark.parametrize("name", ["me/pairs", "me/pairs@v1.0", "data/mistyped"])
def test_a_name_that_is_neither_here_nor_on_the_hub_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["convert", name, "out", "--format", "trl"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"synthalign: error: no pairs at {name}: there is no such file or folder, and as a dataset")


def test_a_folder_here_comes_before_the_hub(pairs, monkeypatch):
    monkeypatch.chdir(pairs.parent.parent)
    (pairs.parent / "set").mkdir()
    (pairs.parent / "images").rename(pairs.parent / "set" / "images")
    pairs.rename(pairs.parent / "set" / "pairs.json")
    assert len(read_pairs(Path("in/set")).rows) == 2


def test_files_that_are_wanted_are_downloaded_once_and_found_without_the_hub_then(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.files = {"data/test-0.parquet": b"test", "data/train-0.parquet": b"train", "README.md": b"card"}
    patterns = ("test*.parquet", "data/test*.parquet")
    folder = hub_folder("me/pairs", patterns)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == {"data/test-0.parquet"}
    assert (folder / "data" / "test-0.parquet").read_bytes() == b"test"
    del hub.sent[:]
    assert hub_folder("me/pairs", patterns) == folder
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub_folder("me/pairs", patterns) == folder
    assert not [path for path in hub.sent if "/resolve/" in path]


def test_a_dataset_that_is_not_on_the_hub_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"^me/pope: there is no such file or folder, and as a dataset of the hub"):
        hub_folder("me/pope", ("*.parquet",))
