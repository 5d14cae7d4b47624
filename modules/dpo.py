"""The DPO LightningModule: maths lives in synthalign.dpo, and only Lightning's share here."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from PIL.Image import Image
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.figures import Figures, figures
from synthalign.dpo.logps import pair_logps
from synthalign.dpo.policy import LoRA, adapters_off, load_policy
from synthalign.types import PreferenceLoss, Reply, Schedule
from synthalign.vlm import Chat, reply
from synthalign.weights import DType


class DPOModule(LightningModule):
    """Direct preference optimisation of a vision-language model with LoRA.

    The frozen reference is the same weights with the adapters off, so no second model is in memory.

    Logged are the figures of synthalign.dpo.figures: under ``train/`` the mean over all pairs of an optimizer step, be
    they in one batch, in several that are accumulated, or on several ranks; under ``val/`` over all held-out pairs.

    Args:
        policy: Folder or hub id of the model to align.
        loss: The preference loss, such as synthalign.dpo.losses.DPO.
        revision: Commit, tag or branch of the policy on the hub.
        lora: The adapters to train.
        adapter: Folder or hub id of a saved PEFT adapter to start from (fit) or to evaluate (test), in place of a
            fresh one.
        dtype: Type of the frozen weights; auto: as they were saved. Adapters are trained in at least fp32.
        system_prompt: Put before every conversation, if the template has a place for it.
        chat_template: Jinja template to use instead of the policy's own.
        optimizer: Makes an optimizer of the trainable parameters.
        schedule: Changes the learning rate from step to step, such as synthalign.dpo.schedules.WarmupCosine; constant
            by default.
        answer_batch_size: Questions answered at once in evaluations.
    """

    def __init__(
        self,
        *,
        policy: str,
        loss: PreferenceLoss,
        revision: str | None = None,
        lora: LoRA = LoRA(),  # noqa: B008 - it is frozen
        adapter: str | None = None,
        dtype: DType = "auto",
        system_prompt: str | None = None,
        chat_template: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        answer_batch_size: int = 16,
    ) -> None:
        super().__init__()
        if answer_batch_size < 1:
            raise ValueError(f"answer_batch_size must be >= 1, got {answer_batch_size}")
        self.policy, self.revision, self.dtype_name = policy, revision, dtype
        self.loss, self.lora, self.adapter = loss, lora, adapter
        self.optimizer, self.schedule = optimizer, schedule
        self.answer_batch_size = answer_batch_size
        self.chat = Chat(model=policy, revision=revision, system_prompt=system_prompt, chat_template=chat_template)
        self.strict_loading = False  # checkpoints hold the adapter only: the base is in its own folder already
        self.network: Any = None
        self._sums: dict[str, Tensor] = {}  # by split: the number of pairs, then their figures, since the last log

    def configure_model(self) -> None:
        """Load the policy: after the pairs were built, which may have needed the memory."""
        if self.network is None:
            self.network = load_policy(
                self.policy, revision=self.revision, dtype=self.dtype_name, lora=self.lora, adapter=self.adapter
            )

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - as Lightning has it
        """Return optimizer and schedule for the adapter's parameters.

        Raises:
            ValueError: There is a schedule, and training has no end to plan it for.
        """
        optimizer = self.optimizer([p for p in self.network.parameters() if p.requires_grad])
        if (schedule := self.schedule) is None:
            return optimizer
        if not math.isfinite(num_steps := self.trainer.estimated_stepping_batches):
            raise ValueError("a schedule needs to know when training ends: set max_epochs or max_steps of the trainer")
        rate = LambdaLR(optimizer, lambda step: schedule(step, int(num_steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of B pairs."""
        return self._step(batch, "train")

    def on_before_optimizer_step(self, optimizer: Any) -> None:  # noqa: ANN401
        """Log the step's figures."""
        self._log("train")

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Take held-out pairs into the same figures. The batch is empty where none are held out."""
        if batch:
            self._step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the figures of all held-out pairs."""
        self._log("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        """Do nothing: under test, the evaluations speak."""

    def _step(self, batch: PreferenceBatch, split: str) -> Tensor:
        policy = pair_logps(self.network, batch)
        with torch.no_grad(), self.adapters_off():
            reference = pair_logps(self.network, batch)
        terms = self.loss(policy, reference)
        if not (finite := torch.isfinite(terms.loss)).all():
            ids = [row_id for row_id, fine in zip(batch.ids, finite.tolist(), strict=True) if not fine]
            raise FloatingPointError(f"the loss is no finite number at pairs {', '.join(ids)}")
        rows = torch.stack([torch.ones_like(terms.chosen_rewards), *figures(terms, policy)])
        self._sums[split] = self._sums.get(split, 0) + rows.sum(1)
        return terms.loss.mean()

    def _log(self, split: str) -> None:
        """Log means over pairs: of all batches since the last call, and of all ranks, each pair counting once."""
        if split not in self._sums:
            return
        total = self.trainer.strategy.reduce(self._sums.pop(split), reduce_op="sum")
        for name, value in zip(Figures._fields, total[1:] / total[0], strict=True):
            self.log(f"{split}/{name}", value, prog_bar=name in ("loss", "accuracy"), batch_size=1)

    @property
    def has_adapter(self) -> bool:
        """Whether the policy differs from its base: a fresh adapter's second factors are all zero."""
        factors = (value for name, value in self.network.named_parameters() if "lora_B" in name)
        return any(bool(factor.any()) for factor in factors)

    def adapters_off(self) -> AbstractContextManager[None]:
        """Make the policy its own frozen base model for a while."""
        return adapters_off(self.network)

    def answer(self, images: Sequence[Image], questions: Sequence[str], *, max_new_tokens: int) -> list[Reply]:
        """Answer each question about its image, greedily."""
        return reply(
            self.network,
            self.chat,
            images,
            questions,
            max_new_tokens=max_new_tokens,
            batch_size=self.answer_batch_size,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained parameters only: megabytes, not gigabytes."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other adapters: without its base it is not strict, and would be taken as it is."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        if differing := trained ^ checkpoint["state_dict"].keys():
            raise ValueError(
                f"the checkpoint's adapter is not on the layers of this run's ({min(differing)}, …): "
                "go on with the lora settings and the policy that it was trained with"
            )
