"""Faster forwards for a language model's adapted linears, norms and gated MLPs; they compute what its own do.

Up to rounding: on weights in bfloat16 the low-rank products are rounded to bfloat16. In one projection that is 3.3e-3
off float64's output, where PEFT's own, which casts to float32 and back, is 1.7e-3 off.

Each is put on an instance, in the place of its class's forward; wherever it does not apply it calls that.

N tokens, D width in, E width out, R rank.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from synthalign.vlm.families import decoder_of


class Fused(NamedTuple):
    """How many modules of each kind run faster."""

    lora: int
    norms: int
    mlps: int


class Activation(NamedTuple):
    """A gate's nonlinearity, and its backward pass, which may write into the gradient it is given."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


class Linear(NamedTuple):
    """What a frozen linear layer computes with: x W^T + bias + scale (x A^T) B^T."""

    weight: Tensor  # (E, D)
    bias: Tensor | None  # (E,)
    a: Tensor | None  # (R, D); None without an adapter
    b: Tensor | None  # (E, R)
    scale: float


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=grad)


def _gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward.grad_input(grad, x, approximate="tanh", grad_input=grad)


ACTIVATIONS = (
    Activation(functional.silu, _silu_backward),
    Activation(partial(functional.gelu, approximate="tanh"), _gelu_backward),
)


def fuse(network: Any) -> Fused:  # noqa: ANN401
    """Give modules of the language model faster forwards that save less for the backward pass.

    Adapters of PEFT on plain frozen linears; norms by root mean square and gated MLPs, both known by their parts and
    tried first. Whatever is trained itself, quantised, sharded, or has a forward of its own stays as it is. May be
    called again, as after adapters were added.

    Args:
        network: A vision-language model, in PEFT's wrapper or bare.

    Returns:
        How many modules run faster now.
    """
    from peft.tuners.lora.layer import Linear as LoraLinear

    unfuse(network)
    tried: dict[Any, Any] = {}

    def once(key: Any, prove: Callable[[], Any]) -> Any:  # noqa: ANN401
        if key not in tried:
            tried[key] = prove()
        return tried[key]

    counts = [0, 0, 0]
    for module in decoder_of(network).modules():
        kind = type(module)
        if "forward" in module.__dict__:  # another's, as of accelerate's offloading
            continue
        if kind is LoraLinear:
            if type(module.base_layer) is nn.Linear and _plain(module.base_layer.weight):
                module.forward = partial(_lora_forward, module)
                counts[0] += 1
        elif (eps := _eps_of(module)) is not None:
            double = module.weight.dtype == torch.float64
            offset = once((kind, eps, double), partial(_offset_of, module, eps, torch.float64 if double else None))
            if offset is not None:
                module.forward = partial(_norm_forward, module, eps, offset)
                counts[1] += 1
        elif _is_gated(module):
            activation = once((kind, str(module.act_fn)), partial(_activation_of, module))
            if activation is not None:
                module.forward = partial(_mlp_forward, module, activation)
                counts[2] += 1
    return Fused(*counts)


def unfuse(network: Any) -> None:  # noqa: ANN401
    """Give the modules their own forwards back."""
    for module in decoder_of(network).modules():
        if _is_ours(module):
            del module.forward


def _lora_forward(module: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
    linear = None if args or kwargs or module.disable_adapters else _linear_of(module, x)
    if linear is None:
        return type(module).forward(module, x, *args, **kwargs)
    return _LowRank.apply(x, *linear)


def _norm_forward(module: Any, eps: float, offset: int, x: Tensor) -> Tensor:  # noqa: ANN401
    weight = module.weight
    if _plain(weight) and weight.dtype == x.dtype and not torch.is_autocast_enabled(x.device.type):
        if x.device.type == "cpu":
            return _Norm.apply(x, weight, eps, offset)
        if x.device.type == "cuda" and not offset:  # its kernel takes no weights of another type
            return functional.rms_norm(x, weight.shape, weight, eps)
    return type(module).forward(module, x)


def _mlp_forward(module: Any, activation: Activation, x: Tensor) -> Tensor:  # noqa: ANN401
    down = module.down_proj
    bypassed = not _hooked(down) and ("forward" not in down.__dict__ or _is_ours(down))
    linear = _linear_of(down, x) if bypassed else None
    if linear is None:
        return type(module).forward(module, x)
    return _GatedDown.apply(module.gate_proj(x), module.up_proj(x), activation, *linear)


def _linear_of(module: Any, x: Tensor) -> Linear | None:  # noqa: ANN401
    """Return what a layer computes with, or None where it is not that simple: then its own forward is to be called."""
    base = getattr(module, "base_layer", module)
    weight, bias = base.weight, base.bias
    if not (type(base) is nn.Linear and _plain(weight) and (bias is None or _plain(bias)) and not _hooked(base)):
        return None
    if weight.dtype != x.dtype or not x.is_contiguous() or torch.is_autocast_enabled(x.device.type):
        return None
    if base is module or (module.disable_adapters and not module.merged):
        return Linear(weight, bias, None, None, 0.0)
    if not hasattr(module, "lora_A"):  # an adapter of another kind
        return None
    names = module.active_adapters
    if module.disable_adapters or module.merged or len(names) != 1 or names[0] not in module.lora_A:
        return None
    name = names[0]
    a, b, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    drops = not isinstance(dropout, nn.Identity) and dropout.training and dropout.p > 0
    if drops or name in module.lora_variant or not (_fits(a, x) and _fits(b, x)):
        return None
    return Linear(weight, bias, a.weight, b.weight, module.scaling[name])


def _fits(factor: Any, x: Tensor) -> bool:  # noqa: ANN401
    """Whether an adapter's factor is a plain matrix that x may be multiplied with."""
    # in bf16, factors of fp32 are cast for a product that accumulates in fp32 by itself; fp16 has not their range
    fits = factor.weight.dtype == x.dtype or x.dtype == torch.bfloat16
    plain = type(factor) is nn.Linear and type(factor.weight) is nn.Parameter and factor.bias is None
    return fits and plain and not _hooked(factor)


def _apply(x: Tensor, linear: Linear) -> tuple[Tensor, Tensor | None]:
    """Return a linear layer's output (…, E), by the very call of its own forward, and x A^T (N, R)."""
    output = functional.linear(x, linear.weight, linear.bias)
    if linear.a is None or linear.b is None:
        return output, None
    inner = x.reshape(-1, x.shape[-1]) @ linear.a.to(x.dtype).t()
    output.view(-1, output.shape[-1]).addmm_(inner, linear.b.to(x.dtype).t(), alpha=linear.scale)
    return output, inner


def _apply_backward(
    grad: Tensor, x: Tensor | None, inner: Tensor | None, linear: Linear, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, (N, D), and of A and B, those that are needed; all of (N, …) are flat."""
    if linear.a is None or linear.b is None:
        return grad @ linear.weight if needed[0] else None, None, None
    of_x = of_a = of_b = None
    of_inner = grad @ linear.b.to(grad.dtype)
    if needed[1] and x is not None:
        of_a = _product(of_inner.t(), x, linear.a.dtype).mul_(linear.scale)
    if needed[2] and inner is not None:
        of_b = _product(grad.t(), inner, linear.b.dtype).mul_(linear.scale)
    if needed[0]:
        of_x = (grad @ linear.weight).addmm_(of_inner, linear.a.to(grad.dtype), alpha=linear.scale)
    return of_x, of_a, of_b


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply; on CUDA without rounding the sum to the factors' type first, which no kernel of the CPU can."""
    if left.is_cuda and left.dtype == torch.bfloat16 and dtype == torch.float32:
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


class _LowRank(torch.autograd.Function):
    """A frozen linear layer with an adapter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parts: Any) -> Tensor:  # noqa: ANN401
        """Return (…, E)."""
        linear = Linear(*parts)
        output, inner = _apply(x, linear)
        ctx.save_for_backward(x, inner, linear.weight, linear.a, linear.b)
        ctx.scale = linear.scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Give the gradients of x, A and B."""
        x, inner, weight, a, b = ctx.saved_tensors
        need = ctx.needs_input_grad
        linear = Linear(weight, None, a, b, ctx.scale)
        flat = grad.reshape(-1, grad.shape[-1])
        of_x, of_a, of_b = _apply_backward(flat, x.view(-1, x.shape[-1]), inner, linear, (need[0], need[3], need[4]))
        return of_x if of_x is None else of_x.view(x.shape), None, None, of_a, of_b, None


class _GatedDown(torch.autograd.Function):
    """The second half of a gated MLP: its last layer, of act(gate) * up, which the backward pass makes again."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        gate: Tensor,
        up: Tensor,
        activation: Activation,
        *parts: Any,  # noqa: ANN401
    ) -> Tensor:
        """Return (…, E)."""
        linear = Linear(*parts)
        output, inner = _apply(activation.forward(gate).mul_(up), linear)
        ctx.save_for_backward(gate, up, inner, linear.weight, linear.a, linear.b)
        ctx.activation, ctx.scale = activation, linear.scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Give the gradients of gate, up, A and B."""
        gate, up, inner, weight, a, b = ctx.saved_tensors
        of_hidden, of_gate, of_up = ctx.needs_input_grad[0] or ctx.needs_input_grad[1], None, None
        need = (of_hidden, *ctx.needs_input_grad[5:7])
        active = ctx.activation.forward(gate)
        hidden = (active * up).reshape(-1, up.shape[-1]) if need[1] else None
        linear = Linear(weight, None, a, b, ctx.scale)
        of_hidden, of_a, of_b = _apply_backward(grad.reshape(-1, grad.shape[-1]), hidden, inner, linear, need)
        del hidden
        if of_hidden is not None:  # ours alone, and so is `active`: both are written over
            of_hidden = of_hidden.view(up.shape)
            of_up = active.mul_(of_hidden)
            of_gate = ctx.activation.backward(of_hidden.mul_(up), gate)
        return of_gate, of_up, None, None, None, of_a, of_b, None


class _Norm(torch.autograd.Function):
    """Division by the root mean square, times offset + weight; on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: int) -> Tensor:  # noqa: ANN401
        """Return x's shape."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, weight)
        ctx.offset = offset
        output = wide * scale if wide is x else wide.mul_(scale)
        # where Llama rounds before it multiplies, Gemma does after
        return output.mul_(weight.to(wide.dtype) + offset).to(x.dtype) if offset else output.to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Give the gradient of x.

        It is the layer norm's for a mean of 0 but for the share of that mean, which is put back: its kernel goes over
        the states once, where single operations go five times.
        """
        x, scale, weight = ctx.saved_tensors
        weight = weight.to(scale.dtype) + ctx.offset
        width = x.shape[-1:]
        grad, zeros = grad.contiguous(), torch.zeros_like(scale)
        of_x = torch.ops.aten.native_layer_norm_backward(
            grad, x, width, zeros, scale, weight, None, [True, False, False]
        )[0]
        means = (grad @ weight.to(grad.dtype)).unsqueeze(-1).to(scale.dtype).mul_(scale).div_(x.shape[-1])
        return of_x.add_(means.to(of_x.dtype)), None, None, None


def _eps_of(module: Any) -> float | None:  # noqa: ANN401
    """Return what a module that may be such a norm adds under the root; None if it is another thing, or trained."""
    if list(module._parameters) != ["weight"] or module._modules or not _plain(module.weight):
        return None
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return eps if isinstance(eps, float) and module.weight.ndim == 1 else None


def _offset_of(module: Any, eps: float, dtype: torch.dtype | None) -> int | None:  # noqa: ANN401
    """Return what the norms of this kind add to their weight; None if they compute another thing."""
    dtype = dtype or torch.float32
    small = _stand_in(module)
    noise = torch.Generator("cpu").manual_seed(0)
    x, weight = (
        torch.randn(*size, *module.weight.shape, generator=noise, dtype=dtype, device="cpu") for size in ((3,), ())
    )
    small._parameters = {"weight": nn.Parameter(weight, requires_grad=False)}
    own = partial(type(small).forward, small, x)
    return next((offset for offset in (0, 1) if _agree(own, partial(_norm_forward, small, eps, offset, x))), None)


def _is_gated(module: Any) -> bool:  # noqa: ANN401
    layers = {"gate_proj", "up_proj", "down_proj"}
    return (
        layers <= set(module._modules) <= layers | {"act_fn"} and not module._parameters and hasattr(module, "act_fn")
    )


def _activation_of(module: Any) -> Activation | None:  # noqa: ANN401
    """Return the activation of gated MLPs of this kind; None if they compute another thing."""
    small = _stand_in(module)
    noise = torch.Generator("cpu").manual_seed(0)
    drawn: Any = {"generator": noise, "dtype": torch.float64, "device": "cpu"}
    for name, (width, size) in {"gate_proj": (8, 12), "up_proj": (8, 12), "down_proj": (12, 8)}.items():
        layer = nn.Linear(width, size, bias=False, device="meta").requires_grad_(False)
        layer.weight = nn.Parameter(torch.randn(size, width, **drawn), requires_grad=False)
        small._modules[name] = layer
    x = torch.randn(3, 8, **drawn)
    own = partial(type(small).forward, small, x)
    return next((one for one in ACTIVATIONS if _agree(own, partial(_mlp_forward, small, one, x))), None)


def _stand_in(module: Any) -> Any:  # noqa: ANN401
    """Return a copy whose parts may be exchanged for small ones, wherever the module's own lie."""
    small = copy.copy(module)
    small._parameters, small._modules = dict(module._parameters), dict(module._modules)
    return small


def _agree(own: Callable[[], Tensor], faster: Callable[[], Tensor]) -> bool:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        try:
            expected = own()
        except Exception:  # any module may look like ours, and fail in its own way
            return False
        found = faster()
    if not isinstance(expected, Tensor) or expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    limit = 1e-12 if expected.dtype == torch.float64 else 1e-5
    return float((found - expected).norm()) <= limit * float(expected.norm())


def _plain(weight: Any) -> bool:  # noqa: ANN401
    """Whether a weight is frozen and a whole tensor of numbers: sharded and quantised ones are of other types."""
    return type(weight) is nn.Parameter and not weight.requires_grad and weight.is_floating_point()


def _hooked(module: nn.Module) -> bool:
    """Whether somebody wants to know when a module is called."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _is_ours(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return isinstance(forward, partial) and forward.func in (_lora_forward, _norm_forward, _mlp_forward)
