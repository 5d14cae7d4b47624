"""The model in training sits the evaluations: before the first step, as it goes on, and when it is tested."""

import os
import sys
from pathlib import Path
from typing import Any, cast

import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from synthalign.callbacks.headline import headline
from synthalign.callbacks.monitors import check_monitors
from synthalign.callbacks.sitting import Sitting
from synthalign.callbacks.undisturbed import undisturbed
from synthalign.evals.ask import check_images
from synthalign.evals.results import RESULTS, SO_FAR, Metrics, Results, comparison, write_results
from synthalign.evals.samples import bring
from synthalign.types import Eval, Policy

MADE_BY_A_RUN = (RESULTS, "samples", "metrics.csv", "adapter", "model")


class Evaluate(Callback):
    """Evaluate the policy during ``fit``, ``validate`` and ``test``, and set before and after side by side.

    - ``fit``: before the first step, which is epoch 0, after epochs, and after steps if wanted; the final model is
      never left out, and no model is evaluated twice.
    - ``test``: first the base model, with the adapter off, then the policy.
    - ``validate``: the policy.

    Metrics are named ``<eval>/<metric>``, such as ``pope/random/accuracy``. Loggers get them with ``step`` (optimizer
    steps taken) and ``epoch`` (epochs completed), so the x-axis of all curves is one. ModelCheckpoint and EarlyStopping
    can monitor them: where they act at the end of a training epoch, or ModelCheckpoint after a step, they see the
    figures of that very model if it was due then, else the last ones. A monitor of a metric that an evaluation does not
    have ends the fit after the first evaluation. Under ``test`` the base model's metrics are logged with ``base/`` in
    front.

    Into the run's folder (the first logger's, else ``default_root_dir``) go ``samples/epoch-000/<eval>.jsonl``,
    ``samples/step-000050/<eval>.jsonl`` and so on (under ``test``, ``samples/base`` and ``samples/policy``) with every
    question, reply and verdict, and at the normal end ``results.json``; until then ``unfinished.json``, of the same
    form, is rewritten after every evaluation. Questions are shared among the ranks, image by image; nothing is counted
    twice. Training goes on exactly as it would have without: modes of all modules, random states and gradients are
    restored. A run that is resumed takes up the history, and the samples of the run before.

    Answers are saved before they are judged. Where a judge fails before the first step the run ends, and under ``test``
    and ``validate`` it ends after the other evaluations and ``results.json``. Later in a fit no judge is worth the
    training: it goes on, the answers stay unjudged, which is said at once and again at the end, and the metrics are
    missing there; for monitors they are NaN, which is never the best, but ends training by an EarlyStopping whose
    ``check_finite`` is left on.

    Args:
        evals: What to sit. The keys of one, such as POPE, are listed by ``synthalign fit --trainer.callbacks Evaluate
            --trainer.callbacks.evals.help synthalign.evals.pope.POPE``.
        at_start: Evaluate before the first step of a fit; without it there is no ``before``.
        every_n_epochs: Evaluate after every n-th epoch; null: after none but the last. In between, monitors see the
            last figures: give ModelCheckpoint the same ``every_n_epochs``.
        every_n_steps: Evaluate after every n-th optimizer step too.
        baseline: Under ``test``, evaluate the base model too where the policy has an adapter.

    Raises:
        ValueError: A setting cannot be, or a file or an image of an evaluation is not as it should be; all are read at
            once.
    """

    def __init__(
        self,
        *,
        evals: list[Eval],
        at_start: bool = True,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        baseline: bool = True,
    ) -> None:
        names = [evaluation.name for evaluation in evals]
        if not evals:
            raise ValueError("Evaluate: evals is empty; list at least one, or leave the callback out")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"Evaluate: two evals are named {twice[0]!r}; give one of them another name")
        if bad := [name for name in names if not name or "/" in name or name.startswith(".")]:
            raise ValueError(f"Evaluate: {bad[0]!r} cannot name an eval: it names metrics and a file")
        for name, every in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if every is not None and every < 1:
                raise ValueError(f"Evaluate: {name}={every}; it must be at least 1, or null")
        self.evals = evals
        self.at_start = at_start
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.baseline = baseline
        self.history: list[dict[str, Any]] = []
        self._begin()
        for evaluation in evals:
            # a mistake in a file must show now: a fit may draw images for days before its setup
            check_images(evaluation.questions(), evaluation.name)

    def _begin(self) -> None:
        self.history = []
        self._owed: int | None = None  # epochs completed, while the evaluation after the last of them is still to come
        self._folder: Path | None = None  # the run's
        self._resumed = False  # and the history is not brought yet
        self._before: Path | None = None  # the folder of the run that is resumed
        self._unjudged: list[str] = []  # one line for each evaluation whose judge failed
        self._finished: Results | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a run; the state of a resumed one is loaded later."""
        self._begin()
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all ranks

    def state_dict(self) -> dict[str, Any]:
        """Return the history, in plain types."""
        assert self._folder is not None
        return {"history": list(self.history), "owed": self._owed, "folder": str(self._folder.absolute())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history of the run that is resumed."""
        self._resumed = True
        self.history = list(state_dict["history"])
        self._owed = state_dict.get("owed")
        self._before = Path(state_dict["folder"]) if "folder" in state_dict else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the model as it starts; a resumed run goes on with its history."""
        self._go_on(trainer, pl_module)
        if self._owed is not None:  # the checkpoint was saved between the epoch's last step and its evaluation
            self._sit_once(trainer, pl_module, self._owed)
        elif self.at_start and not self.history:
            self._sit_once(trainer, pl_module, trainer.current_epoch)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - as Lightning has it
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Evaluate every n optimizer steps. Lightning calls ModelCheckpoint after this."""
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        completed = trainer.current_epoch + last
        if last and self._due(completed):
            self._owed = completed
        if self.every_n_steps is not None and trainer.global_step and trainer.global_step % self.every_n_steps == 0:
            label = None if self._owed is not None else f"step-{trainer.global_step:06d}"
            self._sit_once(trainer, pl_module, completed, label)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate every n epochs. Lightning calls the callbacks that monitor metrics after this one."""
        completed = trainer.current_epoch + 1
        if self._due(completed):
            self._sit_once(trainer, pl_module, completed)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the final model if that is still to be done, which a resumed run may have nothing but to do."""
        self._go_on(trainer, pl_module)
        self._sit_once(trainer, pl_module, trainer.current_epoch)
        first, last = self.history[0], self.history[-1]
        before = first["metrics"] if first["step"] == 0 else None
        self._finish(trainer, Results("fit", before, last["metrics"], self.history, *_whose(pl_module)))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the policy under ``validate``; a fit's own validation has nothing to do with it."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._sit_now(trainer, pl_module, "validate", baseline=False)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the base model, then the policy."""
        self._sit_now(trainer, pl_module, "test", baseline=self.baseline)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Report, after Lightning's bars and tables and the callbacks that save the adapter."""
        if self._finished is not None and trainer.is_global_zero:
            if trainer.progress_bar_callback is not None:  # which draws itself once more when it ends
                trainer.progress_bar_callback.teardown(trainer, pl_module, stage)
            self._tell(self._finished)
        self._finished = None

    def _go_on(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring what a resumed run's history speaks of, once: its samples, and its metrics into the loggers."""
        if not self._resumed:
            return
        self._resumed = False
        if self._before is not None and trainer.is_global_zero:
            assert self._folder is not None
            for folder in bring([entry["samples"] for entry in self.history], self._before, self._folder):
                sys.stderr.write(f"samples of an earlier evaluation are not here: no folder {folder}\n")
        for entry in self.history:
            self._log(trainer, entry["metrics"], entry["epoch"], entry["step"])
        if self.history:
            self._so_far(trainer, pl_module, self.history)

    def _due(self, completed: int) -> bool:
        return self.every_n_epochs is not None and completed % self.every_n_epochs == 0

    def _sit_once(self, trainer: Trainer, pl_module: LightningModule, completed: int, label: str | None = None) -> None:
        """Evaluate a fit's model, unless that was done."""
        step = trainer.global_step
        self._owed = None
        if self.history and self.history[-1]["step"] == step:
            return
        label = label or f"epoch-{completed:03d}"
        metrics, failures = self._sit(trainer, pl_module, label)
        if failures and step == 0:
            (first, *_) = failures.values()
            raise RuntimeError(f"{first}; nothing is trained yet, so mend the judge and start again")
        self._unjudged += failures.values()
        self.history.append({"epoch": completed, "step": step, "samples": f"samples/{label}", "metrics": metrics})
        self._log(trainer, metrics, completed, step)
        self._so_far(trainer, pl_module, self.history)
        if trainer.is_global_zero:
            when = f"epoch {completed}" if label.startswith("epoch") else f"step {step}"
            first = self.history[0]["metrics"] if len(self.history) > 1 else {}
            said = headline(self.evals, metrics, first) or "no figures"
            tqdm.write(f"{when}: {said} (samples/{label})", file=sys.stdout)
        check_monitors(trainer, [one.name for one in self.evals if one.name not in failures])

    def _sit_now(self, trainer: Trainer, pl_module: LightningModule, stage: str, *, baseline: bool) -> None:
        before = None
        wanted = baseline and bool(getattr(pl_module, "has_adapter", False))
        if trainer.strategy.reduce_boolean_decision(wanted, all=False):  # a rank may see but a part of the adapter
            with cast(Policy, pl_module).adapters_off():
                before, failures = self._sit(trainer, pl_module, "base")
            self._unjudged += failures.values()
            base = {"epoch": None, "step": None, "samples": "samples/base", "metrics": before}
            self._so_far(trainer, pl_module, [base])
        after, failures = self._sit(trainer, pl_module, "policy")
        self._unjudged += failures.values()
        logged = {f"base/{key}": value for key, value in (before or {}).items()} | after
        self._log(trainer, logged, trainer.current_epoch, trainer.global_step)
        results = Results(stage, before, after, [], *_whose(pl_module))
        self._finish(trainer, results)
        if self._unjudged:
            if trainer.is_global_zero:
                self._tell(results)
            self._finished = None
            raise RuntimeError(self._unjudged[0])

    def _sit(self, trainer: Trainer, pl_module: LightningModule, label: str) -> tuple[Metrics, dict[str, str]]:
        """Return the metrics of all evaluations, and by name one line for each whose judge failed."""
        assert self._folder is not None
        sitting = Sitting(trainer=trainer, policy=pl_module, folder=self._folder / "samples" / label)
        metrics: Metrics = {}
        failures: dict[str, str] = {}
        with undisturbed(pl_module):
            for evaluation in self.evals:
                report = sitting(evaluation)
                metrics |= {f"{evaluation.name}/{key}": value for key, value in report.metrics.items()}
                if report.failure is not None:
                    file = sitting.folder / f"{evaluation.name}.jsonl"
                    line = f"{evaluation.name}: answers are UNJUDGED ({report.failure}); they are in {file}"
                    failures[evaluation.name] = line
                    stale = [key for key in trainer.callback_metrics if key.startswith(f"{evaluation.name}/")]
                    trainer.callback_metrics.update({key: torch.tensor(torch.nan) for key in stale})
        if trainer.is_global_zero:
            for line in failures.values():
                tqdm.write(line, file=sys.stderr)
        return metrics, failures

    def _log(self, trainer: Trainer, metrics: Metrics, epoch: int, step: int) -> None:
        """Give metrics to monitors and loggers: `LightningModule.log` would refuse before training, and lag a step."""
        if not metrics:
            return
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in metrics.items()})
        for logger in trainer.loggers:
            logger.log_metrics({**metrics, "epoch": epoch}, step=step)
            logger.save()

    def _so_far(self, trainer: Trainer, pl_module: LightningModule, history: list[dict[str, Any]]) -> None:
        """Write what there is to show of a run that may never come to its end."""
        assert self._folder is not None
        if trainer.is_global_zero:
            results = Results("unfinished", None, history[-1]["metrics"], history, *_whose(pl_module))
            write_results(self._folder / SO_FAR, results, self.evals)

    def _finish(self, trainer: Trainer, results: Results) -> None:
        assert self._folder is not None
        self._finished = results
        if trainer.is_global_zero:
            write_results(self._folder / RESULTS, results, self.evals)
            (self._folder / SO_FAR).unlink(missing_ok=True)

    def _tell(self, results: Results) -> None:
        assert self._folder is not None
        rich.print(comparison(self.evals, results))
        for line in self._unjudged:
            print(line)
        made = [self._folder / name for name in MADE_BY_A_RUN if (self._folder / name).exists()]
        print(f"Everything is in {self._folder}: {', '.join(path.name + '/' * path.is_dir() for path in made)}")


def _whose(pl_module: LightningModule) -> tuple[str | None, str | None, int | None]:
    """Return the policy's folder or id, the adapter it began with, and the run's seed, as far as they are known."""
    policy, adapter = (getattr(pl_module, name, None) for name in ("policy", "adapter"))
    seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning keeps it
    return (
        policy if isinstance(policy, str) else None,
        adapter if isinstance(adapter, str) else None,
        None if seed is None else int(seed),
    )
