"""fit, validate, test and synthesize, on LightningCLI."""

import logging
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

import synthalign.callbacks  # these three make their classes known by short names
import synthalign.datamodules
import synthalign.modules
from synthalign.callbacks.random_states import RandomStates
from synthalign.callbacks.save_on_signal import SaveOnSignal, Stopped, handle, leave, requeued_early
from synthalign.cli import fail
from synthalign.tables import read_pairs
from synthalign.tables.rows import text_in
from synthalign.training import strategies
from synthalign.training.best import BestCheckpoints
from synthalign.training.checkpoints import CheckpointFiles
from synthalign.training.newest import resolve, tell_changes
from synthalign.training.ranks import CHOSEN, choose_port, left_as_found, started_by_first, watched


class Trainer(LightningTrainer):
    """Lightning's Trainer, which can also synthesize."""

    def synthesize(self, model: LightningModule | None = None, datamodule: LightningDataModule | None = None) -> None:
        """Make whatever pairs are missing, on all ranks, and stop.

        Args:
            model: Not used; the same configuration serves fit.
            datamodule: Holds the recipe.
        """
        if not isinstance(datamodule, synthalign.datamodules.SyntheticPreferenceDataModule):
            raise ValueError(f"{type(datamodule).__name__} synthesizes nothing: use SyntheticPreferenceDataModule")
        datamodule.trainer = self
        launcher = self.strategy.launcher
        folder = datamodule.synthesize() if launcher is None else launcher.launch(datamodule.synthesize, trainer=self)
        if self.is_global_zero:
            from synthalign.pipeline import summary

            pairs = read_pairs(folder)
            print(f"{summary(len(pairs.rows), pairs.dropped)}\nPairs: {folder}")


class Parser(LightningArgumentParser):
    """Says a mistake in one line, without the usage page."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leave with the line that names the mistake."""
        fail(_gist(message, sys.argv))


class CLI(LightningCLI):
    """LightningCLI with a fourth command, links between parts, and a run folder per command."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands, and which of their parameters the command line does not show."""
        commands = LightningCLI.subcommands()
        # checkpoints are read as tensors and plain types, never otherwise
        kept = {name: commands[name] | {"weights_only"} for name in ("fit", "validate", "test")}
        return {**kept, "synthesize": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Hand the policy's chat to the datamodule, and whether its layout wants an image's pairs together."""
        parser.add_argument(
            "--trust_shards",
            type=bool,
            default=False,
            help="Read a checkpoint that is a folder of shards: its metadata is a pickle, which can run code.",
        )
        parser.link_arguments("model.chat", "data.init_args.chat", apply_on="instantiate")
        parser.link_arguments("model.shares_images", "data.init_args.shares_images", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Spare ``synthesize`` the callbacks, whose evaluations would ask for files."""
        settings = self.config[self.subcommand].trainer
        if not isinstance(settings, Namespace):
            fail(f"trainer: expected keys and their values, found {settings!r}")
        for key in ("accumulate_grad_batches", "check_val_every_n_epoch"):  # Lightning divides by them
            if (every := settings.get(key)) is not None and every < 1:
                fail(f"trainer.{key} must be >= 1, got {every}")
        given = settings.get("callbacks") or []
        places = {"default_root_dir": settings.get("default_root_dir")}
        for at, callback in enumerate(given if isinstance(given, list) else [given]):
            places[f"callbacks[{at}].dirpath"] = callback.get("init_args", {}).get("dirpath")
        for key, place in places.items():
            if "://" in str(place):
                fail(f"trainer.{key} must be a folder, got {place}: mount it, or copy the run there when it has ended")
        if self.subcommand == "synthesize":
            settings.callbacks = None

    def _parse_ckpt_path(self) -> None:
        """Find and check the checkpoint; Lightning would take settings from it."""
        config = self.config[self.config.subcommand]
        if (given := config.get("ckpt_path")) is None:
            return
        if started_by_first():
            config["ckpt_path"] = os.environ[CHOSEN] or None
            return
        training = self.config.subcommand == "fit"
        root = Path(getattr(config.trainer, "default_root_dir", None) or RUNS)
        found = resolve(str(given), root, training=training, trust_shards=config.trust_shards)
        if found is not None and training:
            now = yaml.safe_load(self._parser(self.config.subcommand).dump(config, skip_none=False))
            trainer = {key: now["trainer"][key] for key in TOLD if key in now["trainer"]}
            tell_changes(found, {"model": now["model"], "data": now["data"], "trainer": trainer})
        os.environ[CHOSEN] = "" if found is None else str(found)
        config["ckpt_path"] = os.environ[CHOSEN] or None

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> LightningTrainer:
        if config.get("logger") in (None, True):
            config["logger"] = _loggers(Path(config.get("default_root_dir") or RUNS), str(self.subcommand))
        given = config.get("plugins") or []
        plugins = list(given) if isinstance(given, list) else [given]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["plugins"] = [*plugins, CheckpointFiles()]
        trainer = super()._instantiate_trainer(config, callbacks)
        ours: list[Callback] = vars(trainer)["callbacks"]  # which Lightning declares nowhere
        ours.sort(key=_turn)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        check = getattr(self.model, "check_settings", None)
        if check is not None and subcommand != "synthesize":
            check(self.trainer.strategy, training=subcommand == "fit")
        choose_port(self.trainer)
        with watched(self.trainer), requeued_early(self.trainer):
            try:
                super()._run_subcommand(subcommand)
            except Exception as error:
                if (reason := refusal(error)) is None:
                    raise
                raise ValueError(f"--ckpt_path: the checkpoint does not fit this run: {reason}") from error


def refusal(error: Exception) -> str | None:
    """Say in one line why Lightning, or torch for it, could not restore a checkpoint; None of any other error."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame.name.lstrip("_") for frame in frames if frame.filename.endswith("checkpoint_connector.py")]
    restoring = any(name.startswith(("restore", "resume")) for name in theirs)
    if not restoring or isinstance(error, torch.OutOfMemoryError | MemoryError):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def _turn(callback: Callback) -> int:
    """Say when a callback's turn is, so that what one saves holds what those before it have done.

    A run that is killed between two checkpoints of one step then goes on from one that knows which was the best, and a
    run that is stopped has saved all others of the step.
    """
    if isinstance(callback, ModelCheckpoint):
        return 1 if callback.monitor else 2
    return 3 if isinstance(callback, SaveOnSignal) else 0


TOLD = ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val", "precision")
"""Settings of the trainer that change what a run learns; it is told when a run that goes on has others."""

RUNS = "runs"
"""Where runs go unless the trainer is given a ``default_root_dir``."""


def _loggers(root: Path, command: str) -> list[Any]:
    """Log to CSV and TensorBoard in the first unused folder of ``root``: fit, then fit-2, then fit-3."""
    if "\0" in str(root):
        fail(f"trainer.default_root_dir cannot be a folder: {str(root)!r}")
    try:
        there = next(parent for parent in (root, *root.parents) if parent.exists())
    except OSError as error:  # too long a name
        fail(f"trainer.default_root_dir cannot be a folder: {error.strerror}")
    if not there.is_dir():
        fail(f"trainer.default_root_dir cannot be a folder: {there} is a file")
    name, number = command, 1
    while (root / name).exists():
        number += 1
        name = f"{command}-{number}"
    return [CSVLogger(root, name="", version=name, flush_logs_every_n_steps=10), TensorBoardLogger(root, "", name)]


NOISE = re.compile(
    r"Subtypes:|Errors:|Given value type:|Given value: (Namespace|\{|\[)|Does not validate against"
    r"|Expected a <class 'NoneType'>|Not a valid subclass|Subclass types expect|a class path \(str\)|a dict with"
)
"""Lines of a parser's report that say nothing to the person who wrote the config."""

HINT = "; `--help`, `--model.help NAME`, `--data.help NAME` and `--trainer.callbacks.help Evaluate` list the keys"
"""Put after a report of an unknown key."""


def _gist(message: str, args: Sequence[str]) -> str:
    """Boil a parser's report down to one line, with the place in the config file where the mistake stands."""
    if message.startswith("maximum recursion depth"):
        return "a config file holds itself: look at its anchors (&name) and aliases (*name)"
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    text = " ".join(dict.fromkeys(line for line in lines if line and not NOISE.match(line)))
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text).replace("Parser key ", "")
    named = re.search(r"(?:[Oo]ption '|^\"|Interpolation key ')(?:[\w.]*\.)?(\w+)", text)
    where = _config_line(named[1], args) if named else ""
    return f"{where}{text}{HINT if 'not accept' in text else ''}"


def _config_line(key: str, args: Sequence[str]) -> str:
    """Say in which config file and line a key stands, if it is one line only and no flag names it."""
    flags = [arg.partition("=")[0] for arg in args if arg.startswith("--")]
    if given := [flag for flag in flags if flag.rpartition(".")[2].lstrip("-") == key]:
        return f"{given[-1]}: "
    found = []
    for path in _configs(args):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found += [f"{path}, line {n}: " for n, line in enumerate(lines, 1) if re.search(rf"\b{key}\b *[:}}]", line)]
    return found[0] if len(found) == 1 else ""


def _configs(args: Sequence[str]) -> list[Path]:
    """Return the config files that a command line names."""
    named = (Path(arg.partition("=")[2] or arg) for arg in args)
    return [path for path in named if path.suffix in {".yaml", ".yml"} and os.path.isfile(path)]


@left_as_found()
def run(args: Sequence[str]) -> None:
    """Run a training command.

    Args:
        args: The command line, the command first.
    """
    _quiet()
    for path in _configs(args):
        text_in(path)  # refuses what is no text, which the parser would stumble over
    # References such as ${trainer.max_epochs} are made relative, so that they hold under every subcommand.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    sys.argv = ["synthalign", *args]  # what Lightning starts the other ranks with
    strategies.register()
    handled = handle(signal.SIGTERM, leave)
    try:
        CLI(
            LightningModule,
            LightningDataModule,
            trainer_class=Trainer,
            trainer_defaults={
                "use_distributed_sampler": False,
                "log_every_n_steps": 1,
                "callbacks": [RandomStates(), BestCheckpoints(), SaveOnSignal()],
            },
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf+"},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except Stopped as stopped:
        _tell(stopped, args)
        raise
    except MisconfigurationException as error:  # such as an accelerator that is not there
        fail(str(error))
    except (ValueError, TypeError, RecursionError, OmegaConfBaseException) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raised_in = set(Path(place.filename).parts)
        # Lightning, and torch's optimizers, refuse a setting where it is used.
        of_theirs = {"lightning", "optim"} & raised_in and (place.line or "").startswith("raise ")
        # What a part's constructor refuses reaches us wrapped in the parser's report.
        if not of_theirs and (isinstance(error, TypeError) or not {"jsonargparse", "omegaconf"} & raised_in):
            raise
        key = "seed_everything: " if place.name == "seed_everything" else ""
        fail(key + _gist(str(error), args))
    finally:
        handle(signal.SIGTERM, handled)


@rank_zero_only
def _tell(stopped: Stopped, args: Sequence[str]) -> None:
    """Say in one line what was saved and how to go on."""
    given = [at for at, arg in enumerate(args) if arg.partition("=")[0] == "--ckpt_path"]
    dropped = {place for at in given for place in ((at,) if "=" in args[at] else (at, at + 1))}
    command = [arg for at, arg in enumerate(args) if at not in dropped]
    again = shlex.join(["synthalign", *command, "--ckpt_path", str(stopped.checkpoint)])
    how = "the job is queued again" if stopped.requeued else f"go on with: {again}"
    sys.stderr.write(f"synthalign: stopped by {stopped.by.name}, saved {stopped.checkpoint}; {how}\n")


def _quiet() -> None:
    """Keep from the terminal what a user can do nothing about."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*module\\(s\\) in eval mode at the start of training.*",  # the frozen base is meant to be
        ".*is_gradient_checkpointing.*",  # PEFT asks transformers by the old name
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning asks torch by the old name
        ".*It is recommended to use `self.log.*",  # the module has the ranks' figures together already
        ".*Total length of `list` across ranks is zero.*",  # no held-out pairs
        ".*The dirpath has changed from.*",  # a run that goes on keeps its checkpoints in a folder of its own
        ".*is not supported by the model summary.*",  # its sizes are rough then
        ".*Experiment logs directory.*",  # the two loggers share the run's folder
    ):
        warnings.filterwarnings("ignore", message=message)
