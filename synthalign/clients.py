"""Models behind an OpenAI-compatible server: vLLM, SGLang, ``transformers serve``, and others that speak like them.

One request a row, so that each row has its own seed; many under way at once, so that the server can batch them. A
request that fails for a reason that may pass (no connection, a time-out, statuses 408, 409, 429 and 5xx) is sent again
after a growing, jittered pause, or the one the server asks for; what fails for good is an error, never an empty reply.

A served model is not the local one to the last bit: its server's template, image processing and number format count,
and what a request does not say (top-k, a repetition penalty) is the server's to choose, mostly by the model's
generation_config. Where requests are batched as they come, even greedy replies may differ from run to run.
``transformers serve`` (transformers 5.23) samples only if that file says so, or ``extra_body`` holds
``{"generation_config": '{"do_sample": true}'}``; and it seeds one generator that all requests under way share, so that
its samples come again with ``max_concurrency`` 1 alone.
"""

import asyncio
import base64
import io
import json
import os
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from PIL import Image

from synthalign.types import Reply

SEED_BITS = 31
"""Of a row's seed, sent: vLLM and SGLang take 64 bits with a sign, others 32, some of them with a sign."""

SHOWN = 300
"""Characters of a server's own message that an error repeats."""


class Row(NamedTuple):
    """One request: the user's turn, how errors call it, and the seed of its sampling; greedy without."""

    content: str | list[dict[str, Any]]
    name: str
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a served model is asked through; ``ServedVLM`` and ``ServedLLM`` say what it is asked.

    Args:
        base_url: Where the server speaks OpenAI's language, such as ``http://localhost:8000/v1``.
        model: Name of the model on the server.
        revision: Tells the served weights from others of the same name; not sent, but results are kept apart by it.
        api_key_env: Environment variable that holds the key, for a server that wants one.
        system_prompt: Put before every conversation.
        max_new_tokens: Length limit of a reply, tokens.
        temperature: Of sampling, > 0; used when seeds are given.
        top_p: Sample among the likeliest tokens that together reach this probability.
        extra_body: More fields of the request, as the server documents them, such as ``{"top_k": 20}``.
        max_concurrency: Requests under way at once, in each process.
        timeout_s: How long a request may keep silent before it is sent again, seconds.
        max_retries: How often it is sent again.
    """

    base_url: str
    model: str
    revision: str | None = None
    api_key_env: str | None = None
    system_prompt: str | None = None
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    extra_body: dict[str, Any] | None = None
    max_concurrency: int = 16
    timeout_s: float = 300.0
    max_retries: int = 6

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant, and a key that is not there."""
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url must begin with http:// or https://, got {self.base_url!r}")
        try:
            there = urlsplit(self.base_url).hostname and urlsplit(self.base_url).port != 0
        except ValueError:  # a port that is no number or too large, brackets that are not closed
            there = False
        if not there:
            raise ValueError(f"base_url must be like http://localhost:8000/v1, got {self.base_url!r}")
        if not (self.temperature > 0 and 0 < self.top_p <= 1):
            raise ValueError(f"temperature must be > 0 and top_p in (0, 1], got {self.temperature} and {self.top_p}")
        if self.max_new_tokens < 1 or self.max_concurrency < 1:
            raise ValueError(
                f"max_new_tokens and max_concurrency must be >= 1, got {self.max_new_tokens} and {self.max_concurrency}"
            )
        if not self.timeout_s > 0 or self.max_retries < 0:
            raise ValueError(f"timeout_s must be > 0 and max_retries >= 0, got {self.timeout_s} and {self.max_retries}")
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env, "")
            if not key:
                raise ValueError(f"the environment variable {self.api_key_env!r}, named by api_key_env, is not set")
            if not (key.isascii() and key.isprintable()):  # the client would refuse it too, and show it
                raise ValueError(
                    f"the environment variable {self.api_key_env!r}, named by api_key_env, holds an end of line or "
                    "another sign that no key has"
                )

    def release(self) -> None:
        """Do nothing: the server holds the weights, and a call its connections no longer than it lasts."""

    def _ask(self, rows: Sequence[Row]) -> list[Reply]:
        """Return a reply to each row, in order.

        Raises:
            RuntimeError: A row has failed for good; requests still under way are dropped.
        """
        return _run(self._all(rows)) if rows else []

    async def _all(self, rows: Sequence[Row]) -> list[Reply]:
        from openai import AsyncOpenAI, Timeout

        turns = asyncio.Semaphore(self.max_concurrency)
        async with AsyncOpenAI(
            base_url=self.base_url,
            api_key=os.environ[self.api_key_env] if self.api_key_env else "none",  # the client insists on one
            timeout=Timeout(self.timeout_s, connect=min(self.timeout_s, 10.0), pool=None),
            max_retries=self.max_retries,
        ) as client:

            async def one(position: int, row: Row) -> Reply:
                async with turns:
                    return await self._one(client, row, f"row {position} of {len(rows)} ({row.name!r})")

            tasks = [asyncio.create_task(one(position, row)) for position, row in enumerate(rows, 1)]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, client: Any, row: Row, where: str) -> Reply:  # noqa: ANN401
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        messages: list[dict[str, Any]] = [{"role": "user", "content": row.content}]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        settings: dict[str, Any] = {"temperature": 0.0}
        if row.seed is not None:
            seed = row.seed & ((1 << SEED_BITS) - 1)
            settings = {"temperature": self.temperature, "top_p": self.top_p, "seed": seed}
        place = f"server {self._address}, {where}"
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=messages,
                max_tokens=self.max_new_tokens,
                extra_body=self.extra_body,
                **settings,
            )
        except APIConnectionError as error:
            reason = str(error.__cause__ or error) or type(error.__cause__).__name__
            if isinstance(error, APITimeoutError) and reason != "ConnectTimeout":
                raise RuntimeError(
                    f"{place}: silent for {self.timeout_s:g} s, {_times(error)}: is it overloaded? Lower "
                    "max_concurrency or raise timeout_s, and run again"
                ) from None
            raise RuntimeError(
                f"{place}: no connection, {_times(error)} ({reason}): is it running, and base_url right?"
            ) from None
        except APIStatusError as error:
            cure = self._cure(error.status_code, _times(error))
            raise RuntimeError(f"{place}: status {error.status_code}: {_said(error.response.text)}; {cure}") from None
        return _reply(raw.text, place)

    @property
    def _address(self) -> str:
        """``base_url``, without a name and password before its host."""
        url = urlsplit(self.base_url)
        return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()

    def _cure(self, status: int, times: str) -> str:
        if status in (401, 403):
            return f"does {self.api_key_env} hold the right key?" if self.api_key_env else "give its key by api_key_env"
        if status == 404:
            return f"base_url mostly ends in /v1, and model ({self.model!r}) must be a name that the server lists"
        if status in (408, 409, 429) or status >= 500:
            return f"sent {times}: see the server's log, lower max_concurrency, and run again"
        return "the server does not take the request as it is: mend the settings its message is about"


@dataclass(frozen=True, kw_only=True)
class ServedVLM(Served):
    """A served vision-language model that answers questions: a Responder. Images travel as PNG, inside the request."""

    def respond(
        self, images: Sequence[Image.Image], questions: Sequence[str], seeds: Sequence[int] | None = None
    ) -> list[Reply]:
        """Answer each question about its image: greedily, or, given one seed per row, by sampling.

        Raises:
            RuntimeError: A row has failed for good.
        """
        images = list(images)  # opened once, where they are opened when asked for: ids stay their own
        # Questions about one image come with the same object: it is packed once.
        urls = {key: _data_url(image) for key, image in {id(image): image for image in images}.items()}
        contents = [
            [{"type": "image_url", "image_url": {"url": urls[id(image)]}}, {"type": "text", "text": question}]
            for image, question in zip(images, questions, strict=True)
        ]
        return self._ask(_rows(contents, questions, seeds))


@dataclass(frozen=True, kw_only=True)
class ServedLLM(Served):
    """A served language model that completes a conversation of one turn, in text alone."""

    def complete(self, prompts: Sequence[str], seeds: Sequence[int] | None = None) -> list[Reply]:
        """Reply to each prompt: greedily, or, given one seed per row, by sampling.

        Raises:
            RuntimeError: A row has failed for good.
        """
        return self._ask(_rows(prompts, prompts, seeds))


def _rows(contents: Sequence[Any], texts: Sequence[str], seeds: Sequence[int] | None) -> list[Row]:
    names = [text if len(text) <= 40 else text[:39] + "…" for text in texts]
    each = [None] * len(names) if seeds is None else seeds
    return [Row(*row) for row in zip(contents, names, each, strict=True)]


def _data_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "PNG", compress_level=1)  # a near server's time is dearer than its wire
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _reply(text: str, place: str) -> Reply:
    """Read the body of a response with status 200.

    Raises:
        RuntimeError: It is no chat completion, or one without a text that did not run out of tokens.
    """
    try:
        choice = json.loads(text)["choices"][0]
        content, end = choice["message"].get("content"), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise RuntimeError(
            f"{place}: its answer is no chat completion: {_short(text)!r}; does base_url name an OpenAI-compatible API?"
        ) from None
    if content is None and end == "length":  # a reasoning model, cut off before it began to reply
        return Reply("", truncated=True)
    if not isinstance(content, str):
        raise RuntimeError(
            f"{place}: a reply without text (finish_reason {end!r}): a filter or a tool call of the server; turn it off"
        )
    # JSON can carry half a character, which no file can: it becomes a question mark.
    return Reply(content.encode("utf-8", "replace").decode().strip(), truncated=end == "length")


def _times(error: Any) -> str:  # noqa: ANN401
    """Say how often the request of an error was sent."""
    retries = int(error.request.headers.get("x-stainless-retry-count", 0))
    return f"{retries + 1} times" if retries else "once"


def _said(text: str) -> str:
    """Find a server's own message in the body of its error."""
    try:
        body = json.loads(text)
    except ValueError:
        return _short(text)
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error.get("detail")) if isinstance(error, dict) else error
    return _short(message.rstrip(". ") if isinstance(message, str) else text)


def _short(text: str) -> str:
    line = " ".join(text.split()) or "(nothing)"
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def _run(work: Coroutine[Any, Any, list[Reply]]) -> list[Reply]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:  # a notebook runs a loop of its own in this one
        return thread.submit(asyncio.run, work).result()
