"""The Triton kernel reduces rows as fp64 arithmetic does: interpreted on the CPU, and on a GPU where there is one.

Run as a script it prints its errors; Triton interprets only where that was asked for before it was imported.
"""

import importlib.util
import json
import os
import subprocess
import sys
from itertools import product

import pytest
import torch

VOCABULARIES = [1, 50, 4096, 9001]  # less than a block of 4096, one, and no multiple of it
DTYPES = {"float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11}  # and the rounding of derivatives, all below one
SOFTCAPS = [None, 3.0]
CASES = list(product(VOCABULARIES, DTYPES, SOFTCAPS))

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def errors(vocabulary, dtype, softcap, device):
    """Largest errors of the log-probs, log-sum-exps and derivatives; and what must hold to the last bit."""
    from synthalign.dpo.kernels import reduce_rows_

    torch.manual_seed(0)
    rows = torch.randn(3, vocabulary + 3).mul(4).to(getattr(torch, dtype))
    rows[:, vocabulary:] = 77  # must be neither read nor written
    targets = torch.tensor([0, vocabulary - 1, min(4096, vocabulary // 2)])
    exact = rows[:, :vocabulary].double().requires_grad_()
    logits = exact if softcap is None else softcap * torch.tanh(exact / softcap)
    logps = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    (derivatives,) = torch.autograd.grad(logps.sum(), exact)
    ours, same = rows.to(device, copy=True), rows.to(device, copy=True)
    found, lses = reduce_rows_(ours[:, :vocabulary], targets.to(device), softcap, True)
    again, _ = reduce_rows_(same[:, :vocabulary], targets.to(device), softcap, False)
    return {
        "logps": (found.cpu() - logps).abs().max().item(),
        "lses": (lses.cpu() - logits.logsumexp(1)).abs().max().item(),
        "derivatives": (ours[:, :vocabulary].cpu() - derivatives).abs().max().item(),
        "largest": derivatives.abs().max().item(),
        "fp32": found.dtype == lses.dtype == torch.float32,
        "neighbours": torch.equal(ours[:, vocabulary:].cpu(), rows[:, vocabulary:]),
        "undirected": torch.equal(again, found) and torch.equal(same.cpu(), rows),
        "none": [len(out) for out in reduce_rows_(ours[:0], targets[:0].to(device), softcap, True)],
    }


def check(found, dtype):
    assert found["logps"] < 1e-5 and found["lses"] < 1e-5  # nats; log-probs here reach -25
    assert found["derivatives"] <= DTYPES[dtype]
    assert found["fp32"] and found["neighbours"] and found["undirected"]
    assert found["none"] == [0, 0]


def python(*arguments, **environment):
    """Run a fresh Python, in which Triton is not imported yet."""
    run = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def interpreted():
    return json.loads(python(__file__, TRITON_INTERPRET="1"))


@needs_triton
@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{v}-{d}-{s}" for v, d, s in CASES])
def test_interpreted_rows_equal_fp64_arithmetic(case, interpreted):
    check(interpreted[case], CASES[case][1])


@needs_triton
def test_the_derivatives_compared_are_not_all_near_zero(interpreted):
    assert all(found["largest"] > 0.4 for (size, *_), found in zip(CASES, interpreted, strict=True) if size > 1)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from synthalign.dpo.kernels import BLOCK, WARPS, _reduce_row
types = dict(logits="*bf16", targets="*i64", logps="*fp32", lses="*fp32")
types |= dict(stride="i32", vocabulary="i32", softcap="fp32")
fixed = dict(CAPPED=True, DIRECTED=True, BLOCK=BLOCK)
source = ASTSource(_reduce_row, types | dict.fromkeys(fixed, "constexpr"), constexprs=fixed)
print(triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": WARPS}).asm["ptx"])
"""


@needs_triton
def test_it_compiles_for_a_gpu_that_is_not_here(tmp_path):
    ptx = python("-c", COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert ".target sm_80" in ptx and "_reduce_row" in ptx


NO_TRITON = """
import sys, torch
before = set(sys.modules)
from synthalign.dpo.head import token_logps
token_logps(torch.ones(1, 2), torch.nn.Linear(2, 3, bias=False), torch.tensor([1])).sum().backward()
print({"triton", "synthalign.dpo.kernels"} & (set(sys.modules) - before))
"""


def test_a_cpu_run_imports_no_triton():
    assert python("-c", NO_TRITON) == "set()\n"


@pytest.mark.cuda
@needs_cuda
@needs_triton
@pytest.mark.parametrize(("vocabulary", "dtype", "softcap"), [*CASES, (152064, "bfloat16", None)])
def test_rows_on_cuda_equal_fp64_arithmetic(vocabulary, dtype, softcap):
    check(errors(vocabulary, dtype, softcap, "cuda"), dtype)


if __name__ == "__main__":
    print(json.dumps([errors(*case, "cpu") for case in CASES]))
