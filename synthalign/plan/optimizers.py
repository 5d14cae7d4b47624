"""What an optimizer keeps and takes: found out on a few small parameters, whichever optimizer it is."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from synthalign.plan.live import Live

TRIED_NUMBERS = 2**16
"""Numbers of a parameter that is tried; 8-bit optimizers keep parameters below 4096 in 32 bits."""

TRIED_PARAMETERS = 4


class OptimizerCost(NamedTuple):
    """Bytes for each trained number."""

    name: str
    state: float  # kept from step to step
    update: float  # more, while it steps


def optimizer_cost(
    make: Callable[[Iterable[nn.Parameter]], Any], dtype: torch.dtype, *, foreach: bool
) -> OptimizerCost:
    """Take one step of an optimizer on the CPU and count.

    Args:
        make: Makes it of parameters.
        dtype: Of the trained numbers.
        foreach: Whether torch's own work through all parameters at once, as on CUDA, unless they are told.
    """
    parameters = [nn.Parameter(torch.zeros(TRIED_NUMBERS, dtype=dtype)) for _ in range(TRIED_PARAMETERS)]
    total = TRIED_NUMBERS * TRIED_PARAMETERS
    optimizer = make(parameters)
    for group in optimizer.param_groups:
        if "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = foreach
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = {
        one.untyped_storage()._cdata: one.untyped_storage().nbytes()
        for one in tree_iter(list(optimizer.state.values()))
        if isinstance(one, Tensor) and one.numel() > 1
    }
    with Live() as live:
        optimizer.step()
    return OptimizerCost(type(optimizer).__name__, sum(kept.values()) / total, live.peak / total if foreach else 0.0)
