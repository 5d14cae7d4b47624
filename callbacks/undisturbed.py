"""Whatever happens in an evaluation, training goes on as if it had not."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.backends import cudnn


@contextmanager
def undisturbed(module: torch.nn.Module) -> Iterator[None]:
    """Evaluate a module: eval mode, no gradients. Afterwards modes, random states and torch's switches are as before.

    The random states are those of python, numpy, torch and CUDA; the switches those that a policy, or a judge in the
    same process, might flip and that would change how training computes. What a policy changes in its own network it
    has to change back itself.

    Args:
        module: The policy; every part of it may be in a mode of its own.
    """
    modes = [(part, part.training) for part in module.modules()]
    backend = (cudnn.benchmark, cudnn.deterministic, cudnn.enabled)
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    precision, dtype = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    with isolate_rng(), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training
            cudnn.benchmark, cudnn.deterministic, cudnn.enabled = backend
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
            torch.set_float32_matmul_precision(precision)
            torch.set_default_dtype(dtype)
