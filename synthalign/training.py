"""The training commands, on LightningCLI."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import synthalign.callbacks
import synthalign.datamodules
import synthalign.modules  # noqa: F401 - the three make their classes known by short names
from synthalign.cli import fail
from synthalign.tables import read_pairs


class Trainer(LightningTrainer):
    """Lightning's Trainer, which can also synthesize."""

    def synthesize(
        self, model: LightningModule | None = None, datamodule: LightningDataModule | None = None
    ) -> None:
        """Make whatever pairs are missing, on all ranks, and stop.

        Args:
            model: Not used; the same configuration serves fit.
            datamodule: Holds the recipe.
        """
        assert isinstance(datamodule, synthalign.datamodules.SyntheticPreferenceDataModule)
        datamodule.trainer = self
        launcher = self.strategy.launcher
        folder = datamodule.synthesize() if launcher is None else launcher.launch(datamodule.synthesize, trainer=self)
        if self.is_global_zero:
            from synthalign.pipeline import summary

            pairs = read_pairs(folder)
            print(f"{summary(len(pairs.rows), pairs.dropped)}\nPairs: {folder}")  # noqa: T201


class Parser(LightningArgumentParser):
    """Says a mistake in one line, without the usage page."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leave with the line that names the mistake."""
        fail(_gist(message))
        raise AssertionError


class CLI(LightningCLI):
    """LightningCLI with a fourth command, links between parts, and a run folder per command."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands, and which of their parameters the command line does not show."""
        commands = LightningCLI.subcommands()
        kept = {name: commands[name] for name in ("fit", "validate", "test")}
        return {**kept, "synthesize": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Hand the policy's chat to the datamodule."""
        parser.link_arguments("model.chat", "data.init_args.chat", apply_on="instantiate")

    def _instantiate_trainer(self, config: Namespace | dict[str, Any], callbacks: list[Any]) -> LightningTrainer:
        if config.get("logger") in (None, True):
            config["logger"] = _loggers(Path(config.get("default_root_dir") or "runs"), str(self.subcommand))
        return super()._instantiate_trainer(config, callbacks)


def _loggers(root: Path, command: str) -> list[Any]:
    """Log to CSV and TensorBoard in the first free folder of ``root``: fit, fit-2, fit-3, …"""
    name, number = command, 1
    while (root / name / "metrics.csv").exists():
        number += 1
        name = f"{command}-{number}"
    return [CSVLogger(root, name="", version=name, flush_logs_every_n_steps=10), TensorBoardLogger(root, "", name)]


def _gist(message: str) -> str:
    """Boil jsonargparse's nested report down to its innermost lines."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return " ".join(lines)


def run(args: list[str]) -> None:
    """Run a training command.

    Args:
        args: The command line, the command first.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # References such as ${trainer.max_epochs} are made relative, so that they hold under every subcommand.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    sys.argv = ["synthalign", *args]  # what Lightning starts the other ranks with
    CLI(
        LightningModule,
        LightningDataModule,
        trainer_class=Trainer,
        trainer_defaults={"use_distributed_sampler": False},
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        parser_class=Parser,
        parser_kwargs={"parser_mode": "omegaconf+"},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )
