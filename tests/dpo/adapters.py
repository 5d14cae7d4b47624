"""An adapter that does something: a fresh one computes nothing, and so hides what is wrong."""

from typing import Any

import torch


def spread(network: Any, seed: int = 1) -> Any:
    """Fill the adapters of a PEFT model from a seed, in the order of their layers."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64))
    return network
