"""The head's log-probs and gradients equal a full log_softmax, whatever the head, and keep no logits."""

import pytest
import torch
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from synthalign.dpo.head import _calls_go_to, _Scorer, token_logps

TOKENS, WIDTH, VOCABULARY = 23, 8, 50
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Adapted(nn.Module):
    """A frozen linear layer and a low-rank update, as PEFT builds them."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, VOCABULARY, bias=False)

    def forward(self, hidden):
        return self.base(hidden) + self.up(self.down(hidden))


def linear(trained=False, bias=False):
    return nn.Linear(WIDTH, VOCABULARY, bias=bias).requires_grad_(trained)


def doubled():
    head = linear(trained=True)
    head.register_forward_hook(lambda module, args, logits: 2 * logits)
    return head


def with_own_forward():
    """As accelerate leaves a layer whose weights it brings back from elsewhere."""
    head = linear(trained=True)
    head.forward = lambda hidden: 3 * nn.functional.linear(hidden, head.weight)
    return head


HEADS = {
    "frozen": linear,
    "trained": lambda: linear(trained=True),
    "biased": lambda: linear(trained=True, bias=True),
    "adapted": Adapted,
    "hooked": doubled,
    "with its own forward": with_own_forward,
}


def drawn(tokens=TOKENS, width=WIDTH, vocabulary=VOCABULARY, dtype=torch.float64):
    hidden = 2 * torch.randn(tokens, width, dtype=dtype)
    return hidden.requires_grad_(), torch.randint(vocabulary, (tokens,))


def plain(logits, targets, softcap=None):
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk_tokens", [1, 7, TOKENS - 1, TOKENS, 256])
@pytest.mark.parametrize("kind", HEADS)
def test_values_and_gradients_equal_a_full_log_softmax(kind, chunk_tokens, softcap):
    head, (hidden, targets) = HEADS[kind]().double(), drawn()
    inputs = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    factors = torch.linspace(-1, 1, TOKENS, dtype=torch.float64)
    truth = plain(head(hidden), targets, softcap)
    ours = token_logps(hidden, head, targets, softcap, chunk_tokens)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-13)
    there = torch.autograd.grad((truth * factors).sum(), inputs)
    here = torch.autograd.grad((ours * factors).sum(), inputs)
    torch.testing.assert_close(here, there, rtol=1e-12, atol=1e-13)
    assert all(gradient.norm() > 0 for gradient in here)


@pytest.mark.parametrize("kind", HEADS)
def test_without_gradients_the_values_are_the_same_to_the_last_bit(kind):
    for dtype in (torch.float32, torch.bfloat16):
        head, (hidden, targets) = HEADS[kind]().to(dtype), drawn(dtype=dtype)
        with torch.no_grad():
            bare = token_logps(hidden, head, targets, 3.0, 7)
        assert not bare.requires_grad
        assert bare.dtype == torch.float32
        assert torch.equal(bare, token_logps(hidden, head, targets, 3.0, 7).detach())


@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.parametrize("kind", HEADS)
def test_no_token_and_one_token_are_scored(kind, tokens):
    head, (hidden, targets) = HEADS[kind]().double(), drawn(tokens)
    logps = token_logps(hidden, head, targets)
    torch.testing.assert_close(logps, plain(head(hidden), targets))
    logps.sum().backward()
    assert hidden.grad is not None and hidden.grad.shape == (tokens, WIDTH)
    for parameter in head.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and bool(parameter.grad.any()) == (tokens > 0)


def test_a_trained_head_learns_from_hidden_states_that_need_no_gradient():
    head, (hidden, targets) = linear(trained=True).double(), drawn()
    hidden = hidden.detach()
    (there,) = torch.autograd.grad(plain(head(hidden), targets).sum(), [head.weight])
    (here,) = torch.autograd.grad(token_logps(hidden, head, targets, chunk_tokens=5).sum(), [head.weight])
    torch.testing.assert_close(here, there)


def test_a_weight_that_also_embeds_gets_both_gradients():
    head, ids = linear(trained=True).double(), torch.randint(VOCABULARY, (TOKENS,))

    def gradient(score):
        return torch.autograd.grad(score(nn.functional.embedding(ids, head.weight).sin()).sum(), [head.weight])

    here = gradient(lambda hidden: token_logps(hidden, head, ids.flip(0), chunk_tokens=5))
    torch.testing.assert_close(here, gradient(lambda hidden: plain(head(hidden), ids.flip(0))))


def test_sure_and_hopeless_tokens_stay_finite():
    head = linear()
    nn.init.eye_(head.weight)
    hidden = torch.tensor([[1e4, *[0.0] * 7], [1e4, *[0.0] * 7], [-1e4] * 8], requires_grad=True)
    logps = token_logps(hidden, head, torch.tensor([0, 1, 9]))
    assert logps[:2].tolist() == [0.0, -1e4]
    logps.sum().backward()
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()


class Watch(TorchDispatchMode):
    """Write down what is computed: the most elements of a tensor, by type; the sizes (m, k, n) of matrix products."""

    def __init__(self):
        super().__init__()
        self.most: dict[torch.dtype, int] = {}
        self.products: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.most[tensor.dtype] = max(self.most.get(tensor.dtype, 0), tensor.numel())
        if func.overloadpacket is torch.ops.aten.mm:
            self.products.append((*args[0].shape, args[1].shape[1]))
        return out


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", HEADS)
def test_no_more_than_a_chunk_of_logits_exists_at_a_time(kind, dtype, softcap):
    head, (hidden, targets) = HEADS[kind]().to(dtype), drawn(dtype=dtype)
    largest = 6 * VOCABULARY  # 23 tokens make four chunks of 6, 6, 6 and 5
    assert largest < TOKENS * WIDTH * 2 < TOKENS * VOCABULARY / 2
    kept: list[int] = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with Watch() as watch, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_logps(hidden, head, targets, softcap, 7).sum().backward()
    assert max(watch.most.values()) <= max(largest, VOCABULARY * WIDTH)
    assert max(kept) <= VOCABULARY * WIDTH  # the weight itself
    with Watch() as watch:
        plain(head(hidden), targets, softcap)
    assert max(watch.most.values()) == TOKENS * VOCABULARY  # so the watch would have seen them


def test_bfloat16_logits_are_never_all_in_float32():
    # 64 rows of a cache's worth each: more than a CPU reduces at a time.
    head = nn.Linear(4, 2**16, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    hidden, targets = drawn(64, 4, 2**16, torch.bfloat16)
    with Watch() as watch:
        token_logps(hidden, head, targets).sum().backward()
    assert watch.most[torch.bfloat16] == 64 * 2**16
    assert watch.most[torch.float32] == 2 * 2**16


@pytest.mark.parametrize(("trained", "forward", "backward"), [(False, 2, 0), (True, 2, 2)])
def test_a_step_multiplies_by_the_weight_as_often_as_is_said(trained, forward, backward):
    head, (hidden, targets) = linear(trained).double(), drawn()
    once = TOKENS * WIDTH * VOCABULARY

    def products(watch):
        return sum(m * k * n for m, k, n in watch.products) / once

    with Watch() as watch, torch.no_grad():
        token_logps(hidden, head, targets, chunk_tokens=7)
    assert products(watch) == 1
    with Watch() as watch:
        logps = token_logps(hidden, head, targets, chunk_tokens=7)
    assert products(watch) == forward
    with Watch() as watch:
        logps.sum().backward()
    assert products(watch) == backward


def test_bfloat16_sequences_are_as_exact_as_logits_reduced_in_float32():
    head = nn.Linear(512, 8000, bias=False)
    hidden, targets = drawn(800, 512, 8000, torch.float32)
    with torch.no_grad():
        nn.init.normal_(head.weight, std=0.05)
        hidden, head = hidden.bfloat16(), head.bfloat16()
        logits = head(hidden)
        truth = plain(hidden.double() @ head.weight.double().T, targets)

        def error(logps):
            """Mean error of the log-probs of 8 sequences of 100 tokens, nats."""
            return (logps.double() - truth).view(8, 100).sum(1).abs().mean().item()

        ours, in_float32 = error(token_logps(hidden, head, targets)), error(plain(logits.float(), targets))
        assert ours <= 1.2 * in_float32
        assert error(plain(logits, targets)) > 4 * ours  # reduced in bfloat16


def test_bfloat16_gradients_are_as_exact_as_those_of_logits_reduced_in_float32():
    head, (hidden, targets) = nn.Linear(64, 4000, bias=False, dtype=torch.bfloat16), drawn(100, 64, 4000)
    hidden = hidden.detach().bfloat16().requires_grad_()
    exact = [hidden.detach().double().requires_grad_(), head.weight.detach().double().requires_grad_()]
    truth = torch.autograd.grad(plain(exact[0] @ exact[1].T, targets).sum(), exact)

    def errors(logps):
        found = torch.autograd.grad(logps.sum(), [hidden, head.weight])
        return [((mine - true).norm() / true.norm()).item() for mine, true in zip(found, truth, strict=True)]

    ours = errors(token_logps(hidden, head, targets, chunk_tokens=7))
    for mine, other in zip(ours, errors(plain(head(hidden).float(), targets)), strict=True):
        assert mine <= 1.2 * other
        assert mine < 0.01


@pytest.mark.parametrize("kind", HEADS)
def test_under_autocast_logits_are_what_a_linear_layer_makes_there(kind):
    head, (hidden, targets) = HEADS[kind](), drawn(dtype=torch.float32)
    trained = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(hidden)
        assert logits.dtype == torch.bfloat16
        ours = token_logps(hidden, head, targets)
    truth = plain(logits.float(), targets)
    torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-6)
    here, there = (torch.autograd.grad(logps.sum(), trained) for logps in (ours, truth))
    for mine, other in zip(here, there, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 0.02 * other.norm()


def test_the_head_projects_again_once_it_has_scored():
    head, (hidden, targets) = linear().double(), drawn()
    logits = head(hidden)
    token_logps(hidden, head, targets)
    assert "forward" not in vars(head)
    with pytest.raises((IndexError, RuntimeError)):
        token_logps(hidden, head, targets + VOCABULARY)
    assert torch.equal(head(hidden), logits)


def test_a_head_can_be_scored_while_it_is_being_scored():
    head, (hidden, targets) = linear().double(), drawn()
    outer = _Scorer(head=head, targets=targets, softcap=None, chunk_tokens=7)
    with _calls_go_to(head, outer):
        inner = token_logps(hidden, head, targets.flip(0))
        torch.testing.assert_close(head(hidden), plain(nn.functional.linear(hidden, head.weight), targets))
    torch.testing.assert_close(inner, plain(head(hidden), targets.flip(0)))


class Quantised(torch.Tensor):
    """A weight of a type of its own, which linear layers know how to use; here: one that counts for double."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            with torch._C.DisableTorchFunctionSubclass():
                return 2 * func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def test_a_weight_of_another_type_is_left_to_its_layer():
    head, (hidden, targets) = linear().double(), drawn()
    truth = plain(2 * head(hidden), targets)
    head.weight = nn.Parameter(head.weight.detach().as_subclass(Quantised), requires_grad=False)
    assert type(head.weight) is Quantised
    torch.testing.assert_close(token_logps(hidden, head, targets), truth)


@pytest.fixture
def one_rank():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.mark.parametrize("trained", [False, True])
def test_fsdp_gathers_the_weight_for_the_scoring_and_gets_its_gradient(trained, one_rank):
    head, (hidden, targets) = linear(trained).double(), drawn()
    truth = plain(head(hidden), targets)
    inputs = [hidden, head.weight] if trained else [hidden]
    there = torch.autograd.grad(truth.sum(), inputs)
    fully_shard(head)

    class NoLinear(TorchFunctionMode):
        """The sharded head must be scored by its weight, not called for its logits."""

        def __torch_function__(self, func, types, args=(), kwargs=None):
            assert func is not nn.functional.linear
            return func(*args, **(kwargs or {}))

    with NoLinear():
        ours = token_logps(hidden, head, targets, chunk_tokens=7)
    torch.testing.assert_close(ours, truth)
    ours.sum().backward()
    torch.testing.assert_close(hidden.grad, there[0])
    if trained:
        assert head.weight.grad is not None
        torch.testing.assert_close(head.weight.grad.full_tensor(), there[1])


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.02), (torch.float16, 0.005)],
)
def test_on_cuda_values_and_gradients_equal_a_full_log_softmax(dtype, rtol, softcap):
    head = nn.Linear(64, 9001, bias=False, dtype=dtype)
    hidden, targets = drawn(100, 64, 9001)
    hidden = hidden.detach().to(dtype).requires_grad_()
    exact = [hidden.detach().double().requires_grad_(), head.weight.detach().double().requires_grad_()]
    truth = plain(exact[0] @ exact[1].T, targets, softcap)
    there = torch.autograd.grad(truth.sum(), exact)
    head, hidden = head.cuda(), hidden.detach().cuda().requires_grad_()
    ours = token_logps(hidden, head, targets.cuda(), softcap, 32)
    here = torch.autograd.grad(ours.sum(), [hidden, head.weight])
    for mine, true in zip((ours, *here), (truth, *there), strict=True):
        assert (mine.cpu().double() - true).norm() <= rtol * true.norm()
