"""A run's configuration, read as ``fit`` reads it, its parts made, and neither trainer nor weights."""

import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from synthalign.cli import fail
from synthalign.datamodules import SyntheticPreferenceDataModule
from synthalign.dpo.policy import LoRA
from synthalign.dpo.reference import Cached, FrozenCopy
from synthalign.modules import DPOModule
from synthalign.modules.combinations import check_combination, check_optimizer
from synthalign.plan import SHARDED, Spread
from synthalign.planning.run import Run
from synthalign.planning.step import ReferenceKind
from synthalign.training import command_line
from synthalign.weights import load

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
TRUE = {"bf16-true": torch.bfloat16, "bf16": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
FULL = {"32-true", "32", "None", "transformer-engine"}

SPREADS: dict[str, Spread] = {
    "ddp": "ddp",
    "ddpstrategy": "ddp",
    "ddp_find_unused_parameters_false": "ddp",
    "ddp_find_unused_parameters_true": "ddp",
    "model_parallel": "sharded",
    "fsdp2strategy": "sharded",
    "fsdp": "fsdp",
    "fsdp1strategy": "fsdp",
}
"""What the strategies do, by their names and the lower-cased ones of their classes."""

BESIDES = (
    *("bias", "exclude_modules", "layer_replication", "layers_to_transform", "lora_bias", "modules_to_save"),
    *("rank_pattern", "target_parameters", "trainable_token_indices", "use_dora"),
)
"""Settings of PEFT's LoRA that add weights, or take some away, which plan does not reckon."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a configuration says.

    Args:
        module: Its network is not loaded.
        data: Its pairs are not read.
        trainer: The trainer's settings as they were given.
        run: What decides on bytes and operations.
    """

    module: DPOModule
    data: SyntheticPreferenceDataModule
    trainer: Any
    run: Run


class _CLI(command_line.CLI):
    """Makes module and datamodule, and stops there."""

    def _parse_ckpt_path(self) -> None:
        """A plan goes on from nothing."""

    def instantiate_classes(self) -> None:
        """Make them; the trainer's own parts, callbacks and their evaluations among them, are not wanted."""
        self.given = self.config[self.subcommand].trainer.clone()
        trainer = self.config[self.subcommand].trainer
        for name in ("callbacks", "logger", "plugins", "profiler"):
            trainer[name] = None
        trainer.strategy = "auto"
        self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def read(args: Sequence[str]) -> Read:
    """Read a configuration.

    Args:
        args: Flags and config files of ``synthalign fit``.

    Raises:
        ValueError: It is of a run that cannot be planned.
    """
    command_line._quiet()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    sys.argv = ["synthalign", "fit", *args]
    try:
        cli = _CLI(
            LightningModule,
            LightningDataModule,
            trainer_class=command_line.Trainer,
            trainer_defaults={"use_distributed_sampler": False, "log_every_n_steps": 1},
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            parser_class=command_line.Parser,
            parser_kwargs={"parser_mode": "omegaconf+"},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except (ValueError, RecursionError, OmegaConfBaseException) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts
        if not {"jsonargparse", "omegaconf"} & set(raised_in):
            raise
        fail(command_line._gist(str(error), sys.argv))
    module, data = cli.model, cli.datamodule
    if not isinstance(module, DPOModule) or not isinstance(data, SyntheticPreferenceDataModule):
        raise ValueError(
            f"plan knows DPOModule and SyntheticPreferenceDataModule, not {type(module).__name__} and "
            f"{type(data).__name__}"
        )
    return Read(module=module, data=data, trainer=cli.given, run=run_of(module, cli.given))


def run_of(module: DPOModule, trainer: Any) -> Run:  # noqa: ANN401 - a namespace
    """Take from module and trainer what decides on bytes and operations.

    Raises:
        ValueError: ``fit`` would refuse it, or plan does not know it.
    """
    from transformers import AutoConfig

    world_size, spread = _devices(trainer)
    check(module, sharded=spread in SHARDED)
    precision = str(trainer.precision)
    if precision not in {*AUTOCAST, *TRUE, *FULL}:
        raise ValueError(f"trainer.precision {precision} cannot be planned: there are {', '.join([*AUTOCAST, *TRUE])}")
    reference: ReferenceKind = "adapters_off"
    if isinstance(module.reference, Cached):
        reference = "cached"
    elif isinstance(module.reference, FrozenCopy):
        reference = "copy"
    return Run(
        config=load(AutoConfig, module.policy, revision=module.revision),
        dtype=module.dtype_name,
        quantization=module.quantization,
        lora=module.lora if module.adapter is None else _saved(module.adapter),
        fused=module.fused,
        gradient_checkpointing=module.gradient_checkpointing,
        layout=module.layout,
        reference=reference,
        autocast=AUTOCAST.get(precision),
        cast=TRUE.get(precision),
        optimizer=module.optimizer,
        on_cuda=_on_cuda(trainer),
        spread=spread,
        world_size=world_size,
        accumulate=trainer.accumulate_grad_batches,
    )


def check(module: DPOModule, *, sharded: bool) -> None:
    """Refuse what ``fit`` would refuse before it loads anything.

    Raises:
        ValueError: In one line: what, why, and what to take instead.
    """
    check_combination(
        quantization=module.quantization,
        adapters=not module.trains_all,
        reference=module.reference,
        sharded=sharded,
        training=True,
        checkpoint_base=module.checkpoint_base,
    )
    try:
        optimizer = module.optimizer([nn.Parameter(torch.zeros(1))])
    except ValueError as error:  # torch's own words
        raise ValueError(f"model.init_args.optimizer: {error}") from error
    check_optimizer(optimizer, sharded=sharded)


def _saved(adapter: str) -> LoRA:
    """Read the settings of a saved adapter."""
    from peft import PeftConfig

    saved = load(PeftConfig, adapter)
    if saved.peft_type != "LORA":
        kind = str(saved.peft_type).rpartition(".")[2]
        raise ValueError(f"plan knows LoRA, and the adapter {adapter} is {kind}")
    targets = saved.target_modules
    try:
        pattern = targets if isinstance(targets, str) else rf"(.*\.)?({'|'.join(map(re.escape, sorted(targets)))})"
        lora = LoRA(r=saved.r, alpha=saved.lora_alpha, dropout=saved.lora_dropout, target_modules=pattern)
    except TypeError as error:
        raise ValueError(f"the settings of the adapter {adapter} are not LoRA's: {error}") from error
    plain = lora.config()
    if others := [name for name in BESIDES if getattr(saved, name) != getattr(plain, name)]:
        raise ValueError(f"plan knows no {others[0]}, which the adapter {adapter} has: {getattr(saved, others[0])!r}")
    if pattern == "all-linear":
        raise ValueError(f"plan does not know which layers are all-linear: name them in the config of {adapter}")
    return lora


def _on_cuda(trainer: Any) -> bool:  # noqa: ANN401
    """Whether a run is for CUDA. auto means that even where there is no GPU: plans are made before there is one."""
    return str(trainer.accelerator) in ("auto", "gpu", "cuda")


def _devices(trainer: Any) -> tuple[int, Spread]:  # noqa: ANN401
    """Count the devices, and say how the run is spread over them."""
    given: Any = trainer.devices
    devices = given
    if isinstance(devices, str) and "," in devices:  # a list, as Lightning reads it
        devices = [one for one in devices.split(",") if one.strip()]
    elif isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if devices in ("auto", -1, None):
        count = max(1, torch.cuda.device_count() if _on_cuda(trainer) else 1)
    elif isinstance(devices, int):
        count = devices
    else:
        count = 0 if isinstance(devices, str) else len(devices)
    if count < 1 or trainer.num_nodes < 1:
        raise ValueError(f"trainer.devices {given!r} on trainer.num_nodes {trainer.num_nodes} are no devices")
    world_size = count * trainer.num_nodes
    strategy: Any = trainer.strategy
    name = (strategy if isinstance(strategy, str) else str(strategy["class_path"])).rpartition(".")[2].lower()
    if name in ("auto", "singledevicestrategy"):
        return world_size, "ddp" if world_size > 1 else "whole"
    if name not in SPREADS:
        raise ValueError(f"trainer.strategy {name} cannot be planned: take auto, ddp, fsdp or model_parallel")
    settings = {} if isinstance(strategy, str) else strategy.get("init_args") or {}
    if settings.get("cpu_offload") or settings.get("sharding_strategy", "FULL_SHARD") != "FULL_SHARD":
        raise ValueError("plan knows the older FSDP with sharding_strategy FULL_SHARD, and without cpu_offload")
    return world_size, SPREADS[name]
