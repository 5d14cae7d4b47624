import base64
import io
import json
import socket
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import servers
from PIL import Image
from servers import Answer, Loopback, completion
from small_synthesis import prompt_rows, small_synthesis, write_prompts

from synthalign.clients import ServedLLM, ServedVLM
from synthalign.tables import ImageFiles
from synthalign.types import Reply
from synthalign.vlm import VLM

QUESTIONS = ["Describe the image in detail.", "Is there a dog in the image?", "What colour is the cup?"]
SOON = (("retry-after-ms", "1"),)  # sent again without a test having to wait


def _pictures(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (40, 28, 3), dtype=np.uint8)) for _ in range(count)]


def _llm(url: str, /, **settings) -> ServedLLM:
    given: dict[str, Any] = {"base_url": url, "model": "m", "timeout_s": 5.0, "max_retries": 2} | settings
    return ServedLLM(**given)


def _echo(number: int, body: dict) -> Answer:
    return completion(body["messages"][-1]["content"].upper())


@pytest.fixture(scope="session")
def served_llava(tiny_llava, tmp_path_factory):
    with servers.transformers_serve(tiny_llava, tmp_path_factory.mktemp("serve") / "log") as url:
        yield url


def test_a_served_model_greedily_answers_as_the_same_folder_does_here(served_llava, tiny_llava):
    here = VLM(model=str(tiny_llava), max_new_tokens=24, device="cpu")
    there = ServedVLM(base_url=served_llava, model=str(tiny_llava), max_new_tokens=24, timeout_s=60)
    pictures = [picture for picture in _pictures(6) for _ in QUESTIONS]
    theirs = there.respond(pictures, QUESTIONS * 6)
    ours = here.respond(pictures, QUESTIONS * 6)
    assert theirs == [reply._replace(yes_margin=None) for reply in ours]
    assert len({reply.text for reply in theirs}) >= 12
    assert {reply.truncated for reply in theirs} == {True, False}


def test_seeds_reach_the_server(served_llava, tiny_llava):
    there = ServedVLM(
        base_url=served_llava,
        model=str(tiny_llava),
        max_new_tokens=16,
        timeout_s=60,
        extra_body={"generation_config": '{"do_sample": true}'},  # it would be greedy at any temperature
        max_concurrency=1,  # it seeds one generator that all requests under way share
    )
    pictures = _pictures(2)
    first = there.respond(pictures, QUESTIONS[:2], [1, 2])
    assert there.respond(pictures, QUESTIONS[:2], [1, 2]) == first
    assert there.respond(pictures[1:], QUESTIONS[1:2], [2]) == first[1:]
    assert there.respond(pictures, QUESTIONS[:2], [3, 4]) != first


def test_a_served_model_completes_text(served_llava, tiny_llava):
    there = ServedLLM(base_url=served_llava, model=str(tiny_llava), max_new_tokens=4, timeout_s=60)
    replies = there.complete(QUESTIONS)
    assert replies == there.complete(QUESTIONS)
    assert len({reply.text for reply in replies}) > 1


def test_a_request_holds_the_image_the_question_and_the_settings():
    picture = _pictures(1)[0]
    with Loopback(lambda n, body: completion(" A cup. ")) as server:
        vlm = ServedVLM(
            base_url=server.url,
            model="some/model",
            system_prompt="Be brief.",
            max_new_tokens=7,
            temperature=0.5,
            top_p=0.9,
            extra_body={"top_k": 20},
        )
        assert vlm.respond([picture], ["What is it?"], [2**62 + 5]) == [Reply("A cup.")]
    (request,) = server.requests
    url = request["messages"][1]["content"][0].pop("image_url")["url"]
    assert request == {
        "path": "/v1/chat/completions",
        "model": "some/model",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "What is it?"}]},
        ],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 5,
        "top_k": 20,
    }
    head, _, content = url.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as sent:
        assert np.array_equal(np.asarray(sent), np.asarray(picture))


def test_without_seeds_a_request_asks_for_the_likeliest_tokens():
    with Loopback(_echo) as server:
        assert _llm(server.url, temperature=0.7).complete(["a"]) == [Reply("A")]
    assert server.requests[0]["temperature"] == 0
    assert not {"seed", "top_p"} & server.requests[0].keys()


def test_a_reply_that_ran_out_of_tokens_is_truncated():
    ends = {"cut": completion("so", "length"), "whole": completion("so"), "thinking": completion(None, "length")}
    with Loopback(lambda n, body: ends[body["messages"][0]["content"]]) as server:
        replies = _llm(server.url).complete(["cut", "whole", "thinking"])
    assert replies == [Reply("so", truncated=True), Reply("so"), Reply("", truncated=True)]


def test_no_rows_need_no_server():
    assert _llm("http://127.0.0.1:9/v1").complete([]) == []


def test_the_key_comes_from_the_environment(monkeypatch):
    with pytest.raises(ValueError, match="variable 'MY_KEY', named by api_key_env, is not set"):
        _llm("http://127.0.0.1:9/v1", api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "s3cret")
    with Loopback(_echo) as server:
        _llm(server.url, api_key_env="MY_KEY").complete(["a"])
    assert server.headers[0]["Authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("key", ["s3cret\n", "s3cret\r", "s3crét"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key, monkeypatch):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ValueError, match="variable 'MY_KEY', named by api_key_env, holds an end of line or") as caught:
        _llm("http://127.0.0.1:9/v1", api_key_env="MY_KEY")
    assert "s3c" not in str(caught.value)


def test_a_password_in_the_address_is_sent_and_not_shown():
    with Loopback(lambda n, body: Answer(400, b"no")) as server:
        url = server.url.replace("127.0.0.1", "bob:s3cret@127.0.0.1")
        with pytest.raises(RuntimeError, match=rf"^server {server.url}, row 1 of 1 ") as caught:
            _llm(url).complete(["a"])
    assert server.headers[0]["Authorization"].startswith("Basic ")
    assert "s3cret" not in str(caught.value)


def test_images_that_are_opened_when_asked_for_are_told_apart(tmp_path):
    pictures = _pictures(3)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    with Loopback(lambda n, body: completion(body["messages"][0]["content"][0]["image_url"]["url"])) as server:
        vlm = ServedVLM(base_url=server.url, model="m")
        replies = vlm.respond(ImageFiles(paths), ["What is it?"] * 3)
        assert replies == vlm.respond(pictures, ["What is it?"] * 3)
    assert len({reply.text for reply in replies}) == 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url must begin with http"),
        ({"base_url": "http://"}, "base_url must be like http://localhost:8000/v1, got 'http://'"),
        ({"base_url": "http://localhost:80000/v1"}, "base_url must be like"),
        ({"base_url": "http://localhost:port/v1"}, "base_url must be like"),
        ({"base_url": "http://[::1/v1"}, "base_url must be like"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"top_p": 0.0}, "top_p in"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"timeout_s": 0.0}, "timeout_s must be > 0"),
        ({"max_retries": -1}, "max_retries >= 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        ServedLLM(**({"base_url": "http://127.0.0.1:9/v1", "model": "m"} | setting))


def test_requests_under_way_are_as_many_as_allowed():
    together = threading.Barrier(3)  # opens when three requests are there at the same time

    def answer(number: int, body: dict) -> Answer:
        together.wait(timeout=20)
        return _echo(number, body)

    words = [f"word {n}" for n in range(12)]
    with Loopback(answer) as server:
        replies = _llm(server.url, max_concurrency=3).complete(words)
    assert [reply.text for reply in replies] == [word.upper() for word in words]
    assert server.most_at_once == 3


def test_a_server_that_fails_half_of_the_time_costs_no_row_and_no_order():
    def answer(number: int, body: dict) -> Answer:
        return _echo(number, body) if number % 2 else Answer(500, b"no", SOON)

    words = [f"word {n}" for n in range(40)]
    with Loopback(answer) as server:
        replies = _llm(server.url, max_concurrency=4, max_retries=30).complete(words)
    assert [reply.text for reply in replies] == [word.upper() for word in words]
    assert len(server.requests) == 80


@pytest.mark.parametrize("fault", [Answer(408, b"", SOON), Answer(503, b"", SOON), Answer(body=b"half", drop=True)])
def test_a_passing_fault_is_forgotten(fault):
    with Loopback(lambda n, body: _echo(n, body) if n else fault) as server:
        assert _llm(server.url).complete(["a"]) == [Reply("A")]
    assert len(server.requests) == 2


def test_a_pause_that_the_server_asks_for_is_kept():
    arrivals = []

    def answer(number: int, body: dict) -> Answer:
        arrivals.append(time.monotonic())
        return _echo(number, body) if number else Answer(429, b"", (("Retry-After", "0.7"),))

    with Loopback(answer) as server:
        assert _llm(server.url).complete(["a"]) == [Reply("A")]
    assert arrivals[1] - arrivals[0] >= 0.7  # the client's own first pause is half a second at most


def test_a_pause_too_long_to_wait_for_is_an_error_at_once():
    with Loopback(lambda n, body: Answer(429, b'{"detail": "quota"}', (("Retry-After", "3600"),))) as server:
        with pytest.raises(RuntimeError, match="status 429: quota; sent once: see the server's log"):
            _llm(server.url).complete(["a"])
    assert len(server.requests) == 1


def test_a_server_that_hangs_is_named_when_time_is_out():
    with Loopback(lambda n, body: Answer(hang=True)) as server:
        with pytest.raises(RuntimeError, match=rf"server {server.url}, row \d of 2 .*silent for 0.1 s, 2 times: is it"):
            _llm(server.url, timeout_s=0.1, max_retries=1).complete(["a", "b"])


def test_a_server_that_always_fails_is_an_error_with_its_own_words():
    body = json.dumps({"error": {"message": "out of\nmemory"}}).encode()
    with Loopback(lambda n, b: Answer(500, body, SOON)) as server:
        with pytest.raises(RuntimeError, match=r"row 1 of 1 \('a'\): status 500: out of memory; sent 3 times"):
            _llm(server.url).complete(["a"])
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, {"error": {"message": "too many tokens"}}, "status 400: too many tokens; the server does not take"),
        (422, {"detail": "Unexpected fields"}, "status 422: Unexpected fields; the server does not take"),
        (401, {"error": "who?"}, r"status 401: who\?; give its key by api_key_env"),
        (404, {"object": "error"}, r"status 404: \{\"object\": \"error\"\}; base_url mostly ends in /v1"),
    ],
)
def test_a_refused_request_is_shown_and_not_sent_again(status, body, message):
    with Loopback(lambda n, b: Answer(status, json.dumps(body).encode())) as server:
        with pytest.raises(RuntimeError, match=message):
            _llm(server.url).complete(["a"])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body", [b"<html>", b'{"choices": [{"mess', b"[]", b'{"choices": []}', b'{"choices": [1]}', b""]
)
def test_an_answer_that_is_no_completion_is_an_error(body):
    with Loopback(lambda n, b: Answer(body=body)) as server:
        with pytest.raises(RuntimeError, match=r"is no chat completion: .*OpenAI-compatible"):
            _llm(server.url).complete(["a"])


def test_half_a_character_becomes_one_that_a_file_can_hold():
    with Loopback(lambda n, body: completion("a \ud83d cup")) as server:
        assert _llm(server.url).complete(["a"]) == [Reply("a ? cup")]


def test_a_reply_without_text_is_an_error_and_not_an_empty_answer():
    with Loopback(lambda n, body: completion(None, "content_filter")) as server:
        with pytest.raises(RuntimeError, match=r"a reply without text \(finish_reason 'content_filter'\)"):
            _llm(server.url).complete(["a"])


def test_a_connection_that_always_drops_is_an_error():
    with Loopback(lambda n, body: Answer(body=b"half of it", drop=True)) as server:
        with pytest.raises(RuntimeError, match=r"no connection, once .*is it running"):
            _llm(server.url, max_retries=0).complete(["a"])


def test_a_server_that_takes_no_connection_is_not_called_silent():
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # one may wait, and nobody is let in
        for other in (first, second):
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        with pytest.raises(RuntimeError, match=r"no connection, once \(ConnectTimeout\): is it running"):
            _llm(f"http://127.0.0.1:{full.getsockname()[1]}/v1", timeout_s=0.3, max_retries=0).complete(["a"])


def test_a_server_that_is_not_there_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(RuntimeError, match=f"server {url}, row 1 of 1 .*no connection, once .*is it running"):
            _llm(url, max_retries=0).complete(["a"])


def test_one_row_that_fails_for_good_stops_the_others():
    def answer(number: int, body: dict) -> Answer:
        return Answer(400, b"no") if body["messages"][0]["content"] == "bad" else Answer(hang=True)

    with Loopback(answer) as server:
        with pytest.raises(RuntimeError, match=r"row 2 of 3 \('bad'\): status 400: no"):
            _llm(server.url, timeout_s=60.0).complete(["a", "bad", "c"])


def test_a_notebook_with_a_loop_of_its_own_may_ask_too():
    import asyncio

    async def cell() -> list[Reply]:
        return _llm(server.url).complete(["a"])

    with Loopback(_echo) as server:
        assert asyncio.run(cell()) == [Reply("A")]


def test_a_synthesis_whose_server_dies_goes_on_with_another_and_asks_nothing_twice(
    tmp_path, tiny_clip, tiny_llava, tiny_reward
):
    write_prompts(tmp_path / "prompts.jsonl", prompt_rows(6))
    models = {"clip": str(tiny_clip), "reward": str(tiny_reward), "llava": str(tiny_llava)}

    def run(url: str) -> None:
        first = ServedVLM(base_url=url, model="m", max_retries=0, max_concurrency=1, timeout_s=20)
        small_synthesis(tmp_path, models, responders=[first, replace(first, temperature=1.5)]).run()

    def dying(number: int, body: dict) -> Answer:
        return completion(f"It shows {number}.") if number < 17 else Answer(503, b"going down")

    with Loopback(dying) as server, pytest.raises(RuntimeError, match=r"row \d+ of \d+ .*status 503: going down"):
        run(server.url)
    landed = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "store").glob("answer-*/*.parquet"))
    assert 0 < 2 * landed <= 17  # two samples a question
    with Loopback(lambda n, body: completion(f"There are {n}.")) as server:
        run(server.url)
        assert len(server.requests) == 2 * 6 * 2 * 2 - 2 * landed  # responders, prompts, questions, samples
