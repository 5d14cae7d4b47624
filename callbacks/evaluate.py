"""The model in training sits the evaluations: before the first step, after every epoch, and when it is tested."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from tqdm import tqdm

from synthalign.evals.ask import ask, distinct, share
from synthalign.evals.results import Metrics, Results, comparison, write_results
from synthalign.evals.samples import merge_parts, sample_rows, write_part
from synthalign.evals.tally import Tally
from synthalign.types import Eval, Policy

MADE_BY_A_RUN = ("results.json", "samples", "metrics.csv", "adapter", "model")


class Evaluate(Callback):
    """Evaluate the policy during ``fit``, ``validate`` and ``test``, and set before and after side by side.

    - ``fit``: before the first step, which is epoch 0, and after training epochs; the last one is never left out.
    - ``test``: first the base model, with the adapter off, then the policy.
    - ``validate``: the policy.

    Metrics are named ``<eval>/<metric>``, such as ``pope/random/accuracy``. Loggers get them with ``step`` (optimizer
    steps taken) and ``epoch`` (epochs completed), so the x-axis of all curves is one; ModelCheckpoint and
    EarlyStopping can monitor them when they act at the end of a training epoch. Under ``test`` the base model's
    metrics are logged with ``base/`` in front.

    Into the run's folder (the first logger's, else ``default_root_dir``) go ``samples/epoch-000/<eval>.jsonl`` and so
    on (under ``test``, ``samples/base`` and ``samples/policy``) with every question, reply and verdict, and at the
    normal end ``results.json``. Questions are shared among the ranks, image by image; nothing is counted twice.
    Training goes on exactly as it would have without: modes of all modules, random states and gradients are restored.

    Args:
        evals: What to sit.
        at_start: Evaluate before the first step of a fit; without it there is no ``before``.
        every_n_epochs: Evaluate after every n-th epoch, and after the last. In between, monitors see the last figures:
            give ModelCheckpoint the same ``every_n_epochs``.
        baseline: Under ``test``, evaluate the base model too where the policy has an adapter.

    Raises:
        ValueError: A setting cannot be, or a file of an evaluation is not as it should be; all are read at once.
    """

    def __init__(
        self, *, evals: list[Eval], at_start: bool = True, every_n_epochs: int = 1, baseline: bool = True
    ) -> None:
        names = [evaluation.name for evaluation in evals]
        if not evals:
            raise ValueError("Evaluate: evals is empty; list at least one, or leave the callback out")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"Evaluate: two evals are named {twice[0]!r}; give one of them another name")
        if bad := [name for name in names if not name or "/" in name or name.startswith(".")]:
            raise ValueError(f"Evaluate: {bad[0]!r} cannot name an eval: it names metrics and a file")
        if every_n_epochs < 1:
            raise ValueError(f"Evaluate: every_n_epochs={every_n_epochs}; it must be at least 1")
        self.evals = evals
        self.at_start = at_start
        self.every_n_epochs = every_n_epochs
        self.baseline = baseline
        self.history: list[dict[str, Any]] = []
        self._finished: tuple[Results, Path] | None = None
        for evaluation in evals:
            evaluation.questions()  # a mistake in a file must show now: a fit may draw images for days before its setup

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a run; the state of a resumed one is loaded later."""
        self.history, self._finished = [], None

    def state_dict(self) -> dict[str, Any]:
        """Return the history, in plain types."""
        return {"history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history of the run that is resumed."""
        self.history = list(state_dict["history"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the model as it starts; a resumed run goes on with its history, in its loggers too."""
        for entry in self.history:
            self._log(trainer, entry["metrics"], entry["epoch"], entry["step"])
        if self.at_start and not self.history:
            self._sit_epoch(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate every n epochs. Lightning calls the callbacks that monitor metrics after this one."""
        completed = trainer.current_epoch + 1
        if completed % self.every_n_epochs == 0:
            self._sit_epoch(trainer, pl_module, completed)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the final model if the last epoch's evaluation was left out."""
        if not self.history or self.history[-1]["step"] != trainer.global_step:
            self._sit_epoch(trainer, pl_module, trainer.current_epoch)
        first, last = self.history[0], self.history[-1]
        before = first["metrics"] if first["epoch"] == 0 else None
        self._finished = Results("fit", before, last["metrics"], self.history), _run_folder(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, after the callbacks that save the adapter."""
        self._finish(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the policy under ``validate``; a fit's own validation has nothing to do with it."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._sit_now(trainer, pl_module, "validate", baseline=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report under ``validate``."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._finish(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the base model, then the policy."""
        self._sit_now(trainer, pl_module, "test", baseline=self.baseline)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        self._finish(trainer)

    def _sit_epoch(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        label = f"epoch-{epoch:03d}"
        metrics = self._sit(trainer, pl_module, label)
        entry = {"epoch": epoch, "step": trainer.global_step, "samples": f"samples/{label}", "metrics": metrics}
        self.history.append(entry)
        self._log(trainer, metrics, epoch, trainer.global_step)

    def _sit_now(self, trainer: Trainer, pl_module: LightningModule, stage: str, *, baseline: bool) -> None:
        before = None
        if baseline and getattr(pl_module, "has_adapter", False):
            with cast(Policy, pl_module).adapters_off():
                before = self._sit(trainer, pl_module, "base")
        after = self._sit(trainer, pl_module, "policy")
        logged = {f"base/{key}": value for key, value in (before or {}).items()} | after
        self._log(trainer, logged, trainer.current_epoch, trainer.global_step)
        self._finished = Results(stage, before, after, []), _run_folder(trainer)

    def _sit(self, trainer: Trainer, pl_module: LightningModule, label: str) -> Metrics:
        folder = _run_folder(trainer) / "samples" / label
        metrics: Metrics = {}
        with undisturbed(pl_module):
            for evaluation in self.evals:
                report = self._sit_one(trainer, pl_module, evaluation, folder)
                metrics |= {f"{evaluation.name}/{key}": value for key, value in report.items()}
        return metrics

    def _sit_one(
        self, trainer: Trainer, pl_module: LightningModule, evaluation: Eval, folder: Path
    ) -> dict[str, float]:
        questions = evaluation.questions()
        images = share(questions, trainer.global_rank, trainer.world_size)
        total = sum(distinct(of_image) for of_image in images)
        hidden = not trainer.is_global_zero or trainer.progress_bar_callback is None
        title = f"{evaluation.name} ({folder.name})"
        # a step of Lightning's runs under the trainer's precision; whatever a callback runs does not
        with tqdm(desc=title, total=total, unit="question", disable=hidden, leave=False) as bar:
            with trainer.precision_plugin.forward_context():
                asked, replies = ask(
                    cast(Policy, pl_module), images, max_new_tokens=evaluation.max_new_tokens, progress=bar.update
                )
        verdicts = evaluation.verdicts(asked, replies)
        write_part(folder, evaluation.name, trainer.global_rank, sample_rows(asked, replies, verdicts))
        tally = Tally(evaluation)
        if trainer.world_size > 1:
            tally.to(pl_module.device)  # where the ranks can talk to each other
        tally.update(asked, verdicts)
        report = tally.compute()
        trainer.strategy.barrier(f"samples of {evaluation.name}")
        if trainer.is_global_zero:
            merge_parts(folder, evaluation.name, trainer.world_size, [question.id for question in questions])
        return report

    def _log(self, trainer: Trainer, metrics: Metrics, epoch: int, step: int) -> None:
        """Give metrics to monitors and loggers: `LightningModule.log` would refuse before training, and lag a step."""
        if not metrics:
            return
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in metrics.items()})
        for logger in trainer.loggers:
            logger.log_metrics({**metrics, "epoch": epoch}, step=step)
            logger.save()

    def _finish(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or self._finished is None:
            return
        results, folder = self._finished
        write_results(folder / "results.json", results, self.evals)
        rich.print(comparison(self.evals, results))
        made = [folder / name for name in MADE_BY_A_RUN if (folder / name).exists()]
        print(f"Everything is in {folder}: {', '.join(path.name + '/' * path.is_dir() for path in made)}")


@contextmanager
def undisturbed(module: torch.nn.Module) -> Iterator[None]:
    """Evaluate a module: eval mode, no gradients; afterwards every mode and random state is as it was."""
    modes: Sequence[tuple[torch.nn.Module, bool]] = [(part, part.training) for part in module.modules()]
    with isolate_rng(), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training


def _run_folder(trainer: Trainer) -> Path:
    """Return where the run's files go. All ranks must ask together."""
    return Path(trainer.log_dir or trainer.default_root_dir)
