"""Bytes that a device sends in an optimizer step, by formula: ring algorithms, each byte once for every other device.

A ring's all-reduce of n bytes over W devices sends 2 n (W - 1) / W from each, an all-gather or reduce-scatter half of
that (Patarasuk and Yuan 2009, doi 10.1016/j.jpdc.2008.09.002).
"""

from typing import NamedTuple

from synthalign.plan.memory import Shares, Spread


class Traffic(NamedTuple):
    """Bytes that each device sends, and receives as many."""

    gathered: float  # weights
    reduced: float  # gradients

    @property
    def total(self) -> float:
        """Both."""
        return self.gathered + self.reduced


def traffic_of(shares: Shares, *, spread: Spread, world_size: int, forwards: int, batches: int) -> Traffic:
    """Reckon an optimizer step.

    Args:
        shares: Of the network.
        spread: How the run is spread over devices.
        world_size: Number of devices.
        forwards: Forward passes for each batch through sharded weights, the policy's own or a frozen copy's.
        batches: Accumulated in a step. DDP reduces after the last; FSDP2 gathers for each, and reduces after the last.

    Returns:
        Bytes that a device sends in a step.
    """
    ring = (world_size - 1) / world_size
    if spread == "whole" or world_size == 1:
        return Traffic(0.0, 0.0)
    if spread == "ddp":
        return Traffic(0.0, 2 * ring * shares.trained)
    weights = shares.language + shares.trained
    # Layers are gathered for each forward pass and for the backward pass; the root stays from the one to the other.
    layers = (weights - shares.root) * (forwards + 1) + shares.root * forwards
    return Traffic(ring * layers * batches, ring * shares.trained)
