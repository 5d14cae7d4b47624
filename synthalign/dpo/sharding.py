"""A policy whose weights are spread over the ranks by PyTorch's fully_shard (FSDP2)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributed import get_rank
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard, register_fsdp_forward_method

from synthalign.vlm.families import base_of, decoder_of

T = TypeVar("T")

WRAPPED = "_fsdp_wrapped_module."
"""What the older FullyShardedDataParallel puts into the names of what it holds."""


def shard(network: Any, mesh: DeviceMesh) -> None:  # noqa: ANN401 - any Hugging Face model
    """Spread the language model over the ranks: each layer by itself, embeddings, last norm and head with the whole.

    Vision tower and projector stay whole on every rank: they are small, run outside the model's forward, and the way in
    which transformers takes the tower's hidden states does not survive a sharded tower. What is sharded has to be
    called by the model's own forward, or through ``inside``.

    Args:
        network: The policy, frozen and adapted as it will be trained; on any device.
        mesh: Of the ranks, one dimension.

    Raises:
        ValueError: Tower or projector are trained.
    """
    base = base_of(network)
    encoder = _encoder(network)
    for layer in decoder_of(network).layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(base, mesh=mesh, ignored_params=set(encoder))
    base.run_inside = _do
    register_fsdp_forward_method(base, "run_inside")


def units_of(network: Any) -> tuple[list[nn.Module], list[nn.Parameter]]:  # noqa: ANN401
    """Say what PyTorch's older FullyShardedDataParallel is to flatten together, and what to leave whole.

    Args:
        network: The policy, frozen and adapted as it will be trained.

    Returns:
        Its layers, and by themselves the factors of adapters, or frozen weights would be given gradients beside them;
        and the encoder's parameters.

    Raises:
        ValueError: Tower or projector are trained.
    """
    layers: list[nn.Module] = list(decoder_of(network).layers)
    factors = [
        module
        for layer in layers
        for name, module in layer.named_modules()
        if {"lora_A", "lora_B"} & set(name.split(".")) and isinstance(module, nn.Linear)
    ]
    return layers + factors, _encoder(network)


def _encoder(network: Any) -> list[nn.Parameter]:  # noqa: ANN401
    """Return the parameters of tower and projector, none of which may be trained."""
    kept = {id(parameter) for parameter in decoder_of(network).parameters()}
    encoder = [one for one in base_of(network).model.named_parameters() if id(one[1]) not in kept]
    if trained := [name for name, parameter in encoder if parameter.requires_grad]:
        raise ValueError(
            f"the strategy spreads the language model and leaves the encoder whole, but {trained[0]} is trained: keep "
            "lora.target_modules to the language model, or take the strategy ddp"
        )
    return [parameter for _, parameter in encoder]


def trained_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained of a module, by its names before anybody wrapped parts of it."""
    return {name.replace(WRAPPED, ""): one for name, one in module.named_parameters() if one.requires_grad}


def inside(network: Any, work: Callable[[], T]) -> T:  # noqa: ANN401
    """Do work that calls parts of a network, as if its own forward called them: where its weights are at hand.

    Args:
        network: A policy, sharded or whole.
        work: Returns tensors, alone or in a tuple, through which gradients may go back.
    """
    base: Any = base_of(network)
    return base.run_inside(work) if isinstance(base, FSDPModule) else work()  # type: ignore[attr-defined]


def gathered(network: Any, *, trained: bool) -> dict[str, Tensor]:  # noqa: ANN401
    """Bring the weights together on the CPU of rank 0; the others, all of which have to call this too, get nothing.

    Args:
        network: A sharded policy.
        trained: Leave out what is frozen.
    """
    if isinstance(network, FullyShardedDataParallel):
        return _unit_by_unit(network, trained)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained)
    weights: dict[str, Any] = get_model_state_dict(network, options=options)
    return weights


def root_gathered(whole: nn.Module) -> AbstractContextManager[Any]:
    """Have at hand what the older FSDP holds in no layer, which else only a step of the trainer's brings together.

    Args:
        whole: The outermost module.
    """
    if isinstance(whole, FullyShardedDataParallel):
        return FullyShardedDataParallel.summon_full_params(whole, recurse=False, writeback=False)
    return nullcontext()


def _unit_by_unit(network: FullyShardedDataParallel, trained: bool) -> dict[str, Tensor]:
    """Unflatten one unit after the other, so that the ranks never hold more than one whole."""
    found: dict[str, Tensor] = {}
    for place, unit in network.named_modules():
        if not isinstance(unit, FullyShardedDataParallel):
            continue
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
            for name, parameter in unit.named_parameters():
                own = name.count(WRAPPED) < 2  # else it is of a unit inside
                if own and (parameter.requires_grad or not trained) and get_rank() == 0:
                    found[f"{place}.{name}".replace(WRAPPED, "").lstrip(".")] = parameter.detach().cpu().clone()
    return found


def _do(work: Callable[[], T]) -> T:
    """Be what becomes a method of the network, with the hooks of its forward."""
    return work()
