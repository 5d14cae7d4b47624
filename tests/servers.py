"""Real servers on loopback: ``transformers serve`` in a process of its own, and one of few lines that can misbehave."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

START_S = 120.0  # what a first start may take: importing torch and transformers, loading the model


@contextmanager
def transformers_serve(model: Path, log: Path) -> Iterator[str]:
    """Serve a folder's model until the block ends; gives the base url."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("wb") as stream:
        env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=env)
    try:
        _wait_until_healthy(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _wait_until_healthy(process: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:  # it does not listen yet
            time.sleep(0.1)
    raise AssertionError(f"transformers serve did not start:\n{log.read_text()}")


class Answer(NamedTuple):
    """What a server sends back. ``drop``: it closes the connection after half of it; ``hang``: it sends nothing."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    drop: bool = False
    hang: bool = False


def completion(text: str | None, finish_reason: str = "stop") -> Answer:
    """A chat completion, as OpenAI's servers send it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return Answer(body=json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode())


class Loopback:
    """An OpenAI-compatible server whose answers a test decides on.

    Args:
        answer: Gives the answer to the n-th request (from 0) with this body.
    """

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.at_once = self.most_at_once = 0
        self.lock, self.closing = threading.Lock(), threading.Event()

    def __enter__(self) -> "Loopback":
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.serve(self)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # connections that knock at once; of more than five the default resets some

        self.http = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.closing.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            number = len(self.requests)
            self.requests.append({"path": handler.path, **body})
            self.headers.append(handler.headers)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        answer = self.answer(number, body)
        with self.lock:
            self.at_once -= 1
        if answer.hang:
            self.closing.wait()
            handler.close_connection = True
            return
        handler.send_response(answer.status)
        for name, value in [("Content-Type", "application/json"), *answer.headers]:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        handler.wfile.write(answer.body[: len(answer.body) // 2] if answer.drop else answer.body)
        handler.close_connection = answer.drop or handler.close_connection
