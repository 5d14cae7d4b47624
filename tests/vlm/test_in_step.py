"""Ranks that share the weights reply as one that has them all, however long each one's replies are."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from vlm.asking import IMAGES, QUESTIONS, alike
from vlm.in_step import answers, model_of, rank_of_two, shared_answers

from synthalign.vlm import reply

ROWS = [(image, question) for image in range(3) for question in QUESTIONS]
TESTS = Path(__file__).parents[1]


def uneven(network: Any, chat: Any) -> tuple[int, list[Any], list[Any]]:
    """Return a token at which three rows end and three others do not, and both kinds of rows."""
    network.generation_config.eos_token_id = None
    said = []
    for image, question in ROWS:
        inputs = dict(chat.inputs([IMAGES[image]], [question]))
        out = network.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=0)
        said.append(out[0, inputs["input_ids"].shape[1] :].tolist())
    for stop in sorted({token for tokens in said for token in tokens}):
        short = [row for row, tokens in zip(ROWS, said, strict=True) if stop in tokens[:9]]
        long = [row for row, tokens in zip(ROWS, said, strict=True) if stop not in tokens]
        if min(len(short), len(long)) >= 3:  # equally many, as ranks that share the weights must ask
            return stop, short[:3], long[:3]
    raise AssertionError("no token ends some replies and not others")


@pytest.mark.filterwarnings("ignore:.*has both parameters with requires_grad=True and False")
def test_two_ranks_that_share_the_weights_reply_as_one_that_has_them(tiny_llava, chat, tmp_path):
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    other = subprocess.Popen(  # it imports while this one works out what to expect
        [sys.executable, "-m", "vlm.in_step"],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    asked: dict[str, Any] = {}
    expected, mine = {}, {}
    there = {"folder": str(tiny_llava), "store": str(tmp_path / "store"), "said": str(tmp_path / "said.json")}
    with other:
        for name in ("bare", "adapted", "fsdp"):
            network = model_of(tiny_llava, None, adapted=name != "bare")
            stop, short, long = uneven(network, chat)
            network.generation_config.eos_token_id = stop
            # the ranks change places, so that each has to wait for the other
            mine[name], theirs = (short, long) if name == "bare" else (long, short)
            asked[name] = stop, theirs
            expected[name] = [answers(network, chat, rows, synced=False) for rows in (mine[name], theirs)]
            ended = [{one.truncated for one in replies} for replies in expected[name]]
            assert ended == ([{False}, {True}] if name == "bare" else [{True}, {False}])
        assert other.stdin is not None
        print(json.dumps(there | {"rows": asked}), file=other.stdin, flush=True)
        with rank_of_two(0, tmp_path / "store"):
            for name, (stop, _) in asked.items():
                assert alike(shared_answers(name, tiny_llava, stop, mine[name]), expected[name][0])
        _, errors = other.communicate(timeout=60)
    assert other.returncode == 0, errors
    said = json.loads((tmp_path / "said.json").read_text(encoding="utf-8"))
    for name, (_, theirs) in expected.items():
        assert [tuple(one[:2]) for one in said[name]] == [one[:2] for one in theirs]


@pytest.fixture
def one_rank():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_ranks_that_share_the_weights_do_not_halve_a_batch(tiny_llava, chat, one_rank):
    network = model_of(tiny_llava, None, adapted=False)
    sizes: list[int] = []

    def full(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if len(sizes) > 1:
            raise torch.OutOfMemoryError("out of memory")

    network.register_forward_pre_hook(full, with_kwargs=True)
    with pytest.raises(RuntimeError, match="out of memory with 2 rows at once, which ranks that share the weights"):
        reply(network, chat, IMAGES[:3], QUESTIONS[:3], max_new_tokens=3, batch_size=2, synced=True)
    assert sizes == [2, 2]
