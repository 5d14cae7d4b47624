"""Bytes of tensors that are alive, and operations done, counted while a piece of PyTorch runs, for real or on fakes."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten = torch.ops.aten


class Live(TorchDispatchMode):
    """Counts, while it is entered, the bytes of storages that come to be, from then until they are freed.

    What was there before is not counted, nor is what a kernel takes for itself and gives back before it returns.

    Attributes:
        now: Bytes alive.
        peak: The most that were.
        aside: Bytes among those alive that somebody else counts.
        peak_besides: The most that were besides those.
        operations: Floating-point operations of matrix products, convolutions and attention, two for each
            multiplication and its addition, by phase.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.aside, self.peak_besides, self.phase = 0, 0, 0, 0, ""
        self.operations: Counter[str] = Counter()
        self._alive: dict[int, tuple[Any, int]] = {}  # by storage: who watches it, its bytes

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Name the phase of the operations meanwhile."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def rest(self) -> None:
        """Forget the peaks so far."""
        self.peak, self.peak_besides = self.now, self.now - self.aside

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation and count what it makes."""
        kwargs = kwargs or {}
        given = {one.untyped_storage()._cdata for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)}
        output = func(*args, **kwargs)
        if (count := OPERATIONS.get(func.overloadpacket)) is not None:
            self.operations[self.phase] += count(output, *args, **kwargs)
        # A view of a real tensor comes with a fake storage, which is no memory.
        if not any(one.alias_info for one in func._schema.returns):
            for one in tree_iter(output):
                if isinstance(one, Tensor):
                    self._see(one, given)
        return output

    def _see(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in given or key in self._alive or not size:
            return
        self._alive[key] = weakref.ref(storage, lambda _: self._free(key)), size
        self.now += size
        self.peak = max(self.peak, self.now)
        self.peak_besides = max(self.peak_besides, self.now - self.aside)

    def _free(self, key: int) -> None:
        self.now -= self._alive.pop(key)[1]


def _mm(output: Tensor, left: Tensor, right: Tensor, *others: Any, **more: Any) -> int:  # noqa: ANN401
    return 2 * prod(left.shape) * right.shape[-1]


def _addmm(output: Tensor, bias: Tensor, left: Tensor, right: Tensor, *others: Any, **more: Any) -> int:  # noqa: ANN401
    return _mm(output, left, right)


def _convolution(output: Tensor, x: Tensor, weight: Tensor, *others: Any, **more: Any) -> int:  # noqa: ANN401
    return 2 * prod(output.shape) * prod(weight.shape[1:])


def _convolution_backward(output: Any, grad: Tensor, x: Tensor, weight: Tensor, *others: Any) -> int:  # noqa: ANN401
    *_, (to_x, to_weight, _) = others
    return _convolution(grad, x, weight) * (to_x + to_weight)


def _attention(
    output: Any,  # noqa: ANN401
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    *others: Any,  # noqa: ANN401
    **more: Any,  # noqa: ANN401
) -> int:
    return _seen(query, key, causal or bool(more.get("is_causal"))) * 4


def _attention_backward(
    output: Any,  # noqa: ANN401
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    *others: Any,  # noqa: ANN401
    **more: Any,  # noqa: ANN401
) -> int:
    return _seen(query, key, causal or bool(more.get("is_causal"))) * 10


def _seen(query: Tensor, key: Tensor, causal: bool) -> int:
    """Return heads x width x the number of (query, key) that see one another."""
    *heads, size, width = query.shape
    return prod(heads) * width * (size * (size + 1) // 2 if causal else size * key.shape[-2])


OPERATIONS: dict[Any, Callable[..., int]] = {
    aten.mm: _mm,
    aten.bmm: _mm,
    aten.addmm: _addmm,
    aten.addmm_: _addmm,
    aten.baddbmm: _addmm,
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Of the operations that cost, how many they are."""
