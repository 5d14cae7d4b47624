"""What a forward pass keeps for the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@contextmanager
def kept_bytes(network: Any) -> Iterator[Callable[[], int]]:
    """Give the count of bytes kept meanwhile, weights apart; tensors that share memory count once."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(size for place, (size, _) in kept.items() if place not in weights)
