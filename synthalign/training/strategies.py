"""Ways of spreading a run over devices, under the names that ``--trainer.strategy`` takes."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.fabric.strategies.fsdp import _METADATA_FILENAME
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.constants import default_pg_timeout

from synthalign.dpo.sharding import trained_of
from synthalign.training.fsdp1 import FSDP1Strategy


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallelism: every rank has batches of its own, and a share of the weights.

    Lightning's strategy with other defaults: all ranks are data parallel, where it would make those of one node tensor
    parallel and give them the same batch; and a checkpoint is one file of the trained weights, where it would be a
    folder with frozen ones as well, whose metadata is a pickle.

    Args:
        save_distributed_checkpoint: Every rank saves its share into a folder. Whoever loads it must trust it: what
            PyTorch keeps there of its shards (``.metadata``) is a pickle, which may run anything.
        process_group_backend: Such as nccl or gloo; by default what the device is made for.
        timeout: After which a rank that the others wait for counts as dead.
    """

    def __init__(
        self,
        *,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self._from_shards = False  # whether the checkpoint that was read last was a folder of them

    def setup_environment(self) -> None:
        """Take every rank of every node for data parallelism."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gather the trained weights, on rank 0 alone if they go into one file; the base is in its own folder."""
        assert self.model is not None
        whole = not self._save_distributed_checkpoint
        options = StateDictOptions(full_state_dict=whole, cpu_offload=True, ignore_frozen_params=True)
        return get_model_state_dict(self.model, options=options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint: a file on every rank, as others do; a folder of shards into model and optimizers at once.

        Raises:
            ValueError: The file is damaged.
        """
        path = Path(self.broadcast(checkpoint_path))
        self._from_shards = path.is_dir()
        if not self._from_shards:
            return self.checkpoint_io.load_checkpoint(path, weights_only=True)
        assert self.model is not None
        options = StateDictOptions(ignore_frozen_params=True, strict=False)
        weights = {"state_dict": get_model_state_dict(self.model, options=options)}
        dcp.load(weights, checkpoint_id=path)
        set_model_state_dict(self.model, weights["state_dict"], options=options)
        for number, optimizer in enumerate(self.optimizers):
            states = {f"optimizer_{number}": get_optimizer_state_dict(self.model, optimizer, options=options)}
            dcp.load(states, checkpoint_id=path)
            set_optimizer_state_dict(self.model, optimizer, states[f"optimizer_{number}"], options=options)
        rest: dict[str, Any] = torch.load(path / _METADATA_FILENAME, weights_only=True)
        return rest

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give every rank its share of whole weights."""
        if not self._from_shards:
            assert self.model is not None
            set_model_state_dict(self.model, checkpoint["state_dict"], options=_whole(strict))

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether the optimizer is still to be restored; of a folder of shards it was."""
        return not self._from_shards

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give every rank its share of the optimizers' whole states, which are kept by the weights' numbers."""
        assert self.model is not None
        names = {id(parameter): name for name, parameter in trained_of(self.model).items()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            ours = [names[id(one)] for group in optimizer.param_groups for one in group["params"]]
            # places among what is trained, or among all weights, as the strategy was that saved them
            numbers = [one for group in state["param_groups"] for one in group["params"]]
            name_of = dict(zip(numbers, ours, strict=True))
            named: dict[str, Any] = {
                "state": {name_of[one]: value for one, value in state["state"].items()},
                "param_groups": [
                    {**group, "params": [name_of[one] for one in group["params"]]} for group in state["param_groups"]
                ],
            }
            set_optimizer_state_dict(self.model, optimizer, named, options=_whole(strict=False))


def _whole(strict: bool) -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, strict=strict)


def register() -> None:
    """Let ``--trainer.strategy`` find ours."""
    StrategyRegistry.register("fsdp", FSDP1Strategy, description="FullyShardedDataParallel", override=True)
    description = "fully sharded data parallelism (FSDP2)"
    StrategyRegistry.register("model_parallel", FSDP2Strategy, description=description, override=True)
