"""PyTorch's older FullyShardedDataParallel, as a DPOModule needs it."""

from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.constants import default_pg_timeout
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.optim import Optimizer

from synthalign.dpo.sharding import gathered, units_of


class AsLoaded(FSDPPrecision):
    """Leaves every weight in the type that it was loaded in, where Lightning's 32-true casts all to float32."""

    def __init__(self) -> None:
        super().__init__("32-true")

    def convert_module(self, module: Any) -> Any:  # noqa: ANN401 - as Lightning has it, here and below
        """Return it as it is."""
        return module

    def convert_input(self, data: Any) -> Any:  # noqa: ANN401
        """Return it as it is."""
        return data

    def convert_output(self, data: Any) -> Any:  # noqa: ANN401
        """Return it as it is."""
        return data

    def forward_context(self) -> AbstractContextManager[Any]:
        """Change nothing."""
        return nullcontext()


class FSDP1Strategy(FSDPStrategy):
    """FullyShardedDataParallel of the layers of a DPOModule's language model.

    Vision tower and projector stay whole on every rank. Each factor of an adapter is a unit of its own, since what is
    in one is one flat tensor with one gradient: many small exchanges, which FSDP2 (``model_parallel``) does without.

    Args:
        cpu_offload: Keep the shares on the CPU.
        sharding_strategy: FULL_SHARD; or SHARD_GRAD_OP, which keeps weights whole between forward and backward pass.
        process_group_backend: Such as nccl or gloo; by default what the device is made for.
        timeout: After which a rank that the others wait for counts as dead.
    """

    def __init__(
        self,
        *,
        cpu_offload: bool = False,
        sharding_strategy: Literal["FULL_SHARD", "SHARD_GRAD_OP"] = "FULL_SHARD",
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
    ) -> None:
        super().__init__(
            cpu_offload=cpu_offload,
            sharding_strategy=sharding_strategy,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup(self, trainer: Trainer) -> None:
        """Set up as Lightning does, under a precision that is the weights' own unless another is asked for."""
        if self.precision_plugin.precision == "32-true":
            self.precision_plugin = AsLoaded()
        super().setup(trainer)

    def _setup_model(self, model: Any) -> Any:  # noqa: ANN401 - Lightning's hook for what becomes of the module
        units, encoder = units_of(model.network)
        for parameter in encoder:
            parameter.data = parameter.data.to(self.root_device)
        wanted = {id(unit) for unit in units}
        as_loaded = isinstance(self.precision_plugin, AsLoaded)
        return FullyShardedDataParallel(
            model,
            cpu_offload=self.cpu_offload,
            mixed_precision=None if as_loaded else self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            auto_wrap_policy=CustomPolicy(lambda module: id(module) in wanted),
            ignored_states=encoder,
            use_orig_params=True,  # optimizers and checkpoints then know weights by their names
            device_id=self.root_device,
        )

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gather the trained weights on rank 0; the base is in its own folder."""
        assert self.model is not None
        return gathered(self.model, trained=True)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Keep nothing of it: what FSDP gathers of adapters' flat shares is not what they were."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401
        """Save the trained weights, for ``test`` and export; no run goes on from them as from an optimizer's state."""
        checkpoint.pop("optimizer_states", None)
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> NoReturn:
        """Refuse: optimizer states do not find their flat shares again.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"a run cannot go on from {checkpoint_path} under the older FSDP: take trainer.strategy model_parallel "
            "(FSDP2) or ddp; what the older FSDP itself has trained goes on anew, with --model.init_args.adapter "
            "RUN/adapter"
        )
