"""A network of the right shapes without its weights: what they take is counted, what is done with them can be faked.

E outputs, D inputs of a linear layer, N tokens.
"""

from collections import Counter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

NF4_BLOCK, NF4_SCALES_BLOCK = 64, 256
"""Weights of a scale, and scales of a scale of their own: bitsandbytes' sizes, with double quantisation on."""


class Weights(NamedTuple):
    """What weights take, bytes, and how many are trained and frozen.

    Of matrices in 4 or 8 bits, numbers are counted, not bytes, and their scales not at all.
    """

    frozen: int
    trained: int
    frozen_bytes: Counter[str]  # by type; those of buffers and of quantised matrices' scales included
    trained_bytes: Counter[str]

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.frozen_bytes.total() + self.trained_bytes.total()


def weigh(*parts: nn.Module, besides: nn.Module | None = None) -> Weights:
    """Sum up the weights of some modules, each once, whatever device they are on.

    Args:
        *parts: The modules.
        besides: Its weights are left out.
    """
    left_out = set() if besides is None else {id(one) for one in (*besides.parameters(), *besides.buffers())}
    counts, sizes = Counter[bool](), (Counter[str](), Counter[str]())
    seen = set(left_out)
    for module in (module for part in parts for module in part.modules()):
        packed = module if isinstance(module, _Quantised) else None
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            trained = tensor.requires_grad
            name = packed.kind if packed else str(tensor.dtype).removeprefix("torch.")
            sizes[trained][name] += tensor.numel() * tensor.element_size()
            if isinstance(tensor, nn.Parameter):
                counts[trained] += packed.in_features * packed.out_features if packed else tensor.numel()
    return Weights(counts[False], counts[True], *sizes)


def quantise(layers: nn.Module, kind: Literal["nf4", "int8"]) -> None:
    """Put stand-ins in the place of linear layers, with the tensors that bitsandbytes' own have.

    Args:
        layers: On the meta device.
        kind: nf4, its scales quantised too, or int8.
    """
    for module in list(layers.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, _Quantised(child, kind))


def weightless(network: nn.Module) -> None:
    """Give a network of the meta device weights on the CPU that take no memory: all lie on one storage, never touched.

    To everything that asks they are ordinary parameters; what is computed with them is to be faked.
    """
    tensors = [*network.parameters(), *network.buffers()]
    storage = torch.UntypedStorage(max(one.numel() * one.element_size() for one in tensors))
    lying: dict[int, Any] = {}

    def lay(tensor: Tensor) -> Tensor:
        if id(tensor) not in lying:
            one = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride())
            kept = isinstance(tensor, nn.Parameter)
            lying[id(tensor)] = nn.Parameter(one, requires_grad=tensor.requires_grad) if kept else one, tensor
        return lying[id(tensor)][0]

    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = lay(tensor)  # type: ignore[assignment]  # a parameter for a parameter


class _Quantised(nn.Linear):
    """A linear layer whose weight is packed; it computes nothing, and keeps and makes what bitsandbytes' does."""

    def __init__(self, plain: nn.Linear, kind: Literal["nf4", "int8"]) -> None:
        super().__init__(1, 1, bias=False, device="meta")
        self.in_features, self.out_features, self.kind, self.bias = (
            plain.in_features,
            plain.out_features,
            kind,
            plain.bias,
        )
        count = self.in_features * self.out_features
        if kind == "int8":
            packed = torch.empty(self.out_features, self.in_features, dtype=torch.int8, device="meta")
            scales = {"scb": torch.empty(self.out_features, device="meta")}
        else:
            packed = torch.empty((count + 1) // 2, 1, dtype=torch.uint8, device="meta")
            blocks = -(-count // NF4_BLOCK)
            scales = {
                "absmax": torch.empty(blocks, dtype=torch.uint8, device="meta"),
                "absmax_of_absmax": torch.empty(-(-blocks // NF4_SCALES_BLOCK), device="meta"),
                "codes": torch.empty(16 + 256 + 1, device="meta"),  # of the weights, of the scales, and their offset
            }
        self.weight = nn.Parameter(packed, requires_grad=False)
        for name, scale in scales.items():
            self.register_buffer(name, scale, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return (…, E)."""
        output: Tensor = _Dequantised.apply(input, self.out_features, self.kind == "int8")
        return output if self.bias is None else output + self.bias


class _Dequantised(torch.autograd.Function):
    """A product with a weight that is made for it, forward and backward, and thrown away."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out_features: int, keeps_input: bool) -> Tensor:  # noqa: ANN401
        """Return (…, E)."""
        ctx.out_features, ctx.width = out_features, x.shape[-1]
        ctx.save_for_backward(*([x] if keeps_input else []))
        return linear(x, x.new_empty(out_features, x.shape[-1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Give the gradient of x."""
        return grad @ grad.new_empty(ctx.out_features, ctx.width), None, None
