"""The DPO LightningModule: maths lives in synthalign.dpo, and only Lightning's share here."""

import math
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from PIL.Image import Image
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.carried import why_not_carried
from synthalign.dpo.checkpointing import checkpoint_layers
from synthalign.dpo.families import trains_encoder
from synthalign.dpo.features import Features, image_features
from synthalign.dpo.figures import Figures, figures
from synthalign.dpo.fused import fuse
from synthalign.dpo.guards import FallingChosen, refuse_nonfinite
from synthalign.dpo.layouts import VERSION, Layout, Rows, Tree
from synthalign.dpo.logps import pair_logps
from synthalign.dpo.policy import LoRA, adapters_off, load_policy, train_language
from synthalign.dpo.reference import AdaptersOff, Reference
from synthalign.dpo.reference_cache import Preparation
from synthalign.dpo.sharding import gathered, inside, root_gathered, shard, trained_of
from synthalign.modules.combinations import check_combination, check_optimizer, check_strategy
from synthalign.store import recipe_of
from synthalign.types import PairLogps, PreferenceLoss, Reply, Schedule
from synthalign.vlm import Chat, KeptFeatures, reply
from synthalign.weights import DType, Quantization


class DPOModule(LightningModule):
    """Direct preference optimisation of a vision-language model, with LoRA or of all its language model's weights.

    By default the frozen reference is the same weights with the adapters off, so no second model is in memory, and
    each image and each prompt is computed once for both responses (see synthalign.dpo.layouts). A model that the layout
    would get wrong is told on the terminal and taken as plain rows.

    The gradient of an optimizer step is the mean over its pairs, be they in batches of whatever sizes, accumulated or
    on several ranks. Logged are the figures of synthalign.dpo.figures: under ``train/`` their means over the pairs of
    an optimizer step, under ``val/`` over all held-out pairs.

    Args:
        policy: Folder or hub id of the model to align.
        loss: The preference loss, such as synthalign.dpo.losses.DPO.
        revision: Commit, tag or branch of the policy on the hub.
        lora: The adapters to train; null: train the language model itself, which needs a reference that stays
            (synthalign.dpo.reference.Cached or FrozenCopy).
        adapter: Folder or hub id of a saved PEFT adapter to start from (fit) or to evaluate (test), in place of a
            fresh one.
        dtype: Type of the frozen weights; auto: as they were saved. Adapters are trained in at least fp32.
        quantization: Keep the matrices of the language model's layers in 4 bits (nf4: QLoRA, Dettmers et al. 2023,
            arXiv 2305.14314) or 8 (int8), by bitsandbytes, and compute in ``dtype``; null: as they are.
        system_prompt: Put before every conversation, if the template has a place for it.
        chat_template: Jinja template to use instead of the policy's own.
        optimizer: Makes an optimizer of the trainable parameters; torch.optim.AdamW by default.
        schedule: Changes the learning rate from step to step, such as synthalign.dpo.schedules.WarmupCosine; constant
            by default.
        layout: How a batch lies before the model: synthalign.dpo.layouts.Tree by default; Trie where pairs share
            images, whose batches then keep them together; Rows for the plain way.
        reference: Where the reference's log-probs come from: synthalign.dpo.reference.AdaptersOff by default.
        fused: Use faster forms of LoRA's, the norms' and the MLPs' arithmetic. They are equal up to rounding; on
            bfloat16 weights the low-rank products are rounded to bfloat16, which PEFT computes in float32.
        gradient_checkpointing: Compute activations again in the backward pass: less memory, about a quarter slower.
        keep_features_gib: CPU memory for images' features, GiB, which spares the frozen tower from the second epoch on,
            and in every evaluation but the first.
        max_chosen_fall: Warn when the chosen responses' mean log-prob falls this far below its starting value, nats;
            null never warns, nor does a run that starts from ``adapter``.
        answer_batch_size: Questions answered at once in evaluations.
        checkpoint_base: Put the frozen weights into checkpoints too: gigabytes, for a run that is to outlive the
            policy's folder. Not where they are spread over ranks.
    """

    def __init__(
        self,
        *,
        policy: str,
        loss: PreferenceLoss,
        revision: str | None = None,
        lora: LoRA | None = LoRA(),  # noqa: B008 - it is frozen
        adapter: str | None = None,
        dtype: DType = "auto",
        quantization: Quantization | None = None,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        layout: Layout | None = None,
        reference: Reference | None = None,
        fused: bool = True,
        gradient_checkpointing: bool = False,
        keep_features_gib: float = 0.0,
        max_chosen_fall: float | None = 10.0,
        answer_batch_size: int = 16,
        checkpoint_base: bool = False,
    ) -> None:
        super().__init__()
        if answer_batch_size < 1 or not keep_features_gib >= 0:
            raise ValueError(
                "answer_batch_size must be >= 1 and keep_features_gib >= 0, "
                f"got {answer_batch_size} and {keep_features_gib}"
            )
        self.policy, self.revision, self.dtype_name, self.quantization = policy, revision, dtype, quantization
        self.loss, self.lora, self.adapter = loss, lora, adapter
        # Were AdamW the signature's default, the command line would hand its weight decay on to any other class.
        self.optimizer: OptimizerCallable = optimizer or torch.optim.AdamW
        self.schedule = schedule
        self.layout: Layout = layout or Tree()
        self.reference: Reference = reference or AdaptersOff()
        self.fused, self.gradient_checkpointing = fused, gradient_checkpointing
        self.kept = KeptFeatures(keep_features_gib) if keep_features_gib else None
        self.falling: FallingChosen | None = None
        if max_chosen_fall is not None and adapter is None:  # a given adapter is not where the reference is
            self.falling = FallingChosen(margin_nats=max_chosen_fall)
        self.answer_batch_size, self.checkpoint_base = answer_batch_size, checkpoint_base
        self.chat = Chat(model=policy, revision=revision, system_prompt=system_prompt, chat_template=chat_template)
        self.strict_loading = False  # checkpoints hold the adapter only: the base is in its own folder already
        self.network: Any = None
        self._sums: dict[str, Tensor] = {}  # by split: the number of pairs, then their figures, since the last log
        self._trusted: Layout | None = None  # the layout, once it was tried on a batch
        self._ready = False  # whether the reference is
        self._folder: Path | None = None  # the run's

    def check_settings(self, strategy: Strategy | None, *, training: bool) -> None:
        """Refuse what cannot be combined; the command line asks before any pair is made.

        Args:
            strategy: The trainer's; None outside of one.
            training: Whether the policy will be trained, not only evaluated.

        Raises:
            ValueError: In one line: what, why, and what to take instead.
        """
        check_strategy(strategy)
        check_combination(
            quantization=self.quantization,
            adapters=not self.trains_all,
            reference=self.reference,
            sharded=isinstance(strategy, FSDPStrategy | ModelParallelStrategy),
            training=training,
            checkpoint_base=self.checkpoint_base,
        )

    def configure_model(self) -> None:
        """Load the policy: after the pairs were built, which may have needed the memory."""
        if self.network is not None:
            return
        doing = TrainerFn.FITTING if self._trainer is None else self.trainer.state.fn
        training = doing == TrainerFn.FITTING
        self.check_settings(self._strategy, training=training)
        self.network = load_policy(
            self.policy,
            revision=self.revision,
            dtype=self.dtype_name,
            lora=self.lora,
            adapter=self.adapter,
            quantization=self.quantization,
            # a strategy moves all else, but what bitsandbytes has packed stays where it is
            device=None if self.quantization is None or self._strategy is None else self._strategy.root_device,
        )
        if self.trains_all and self.quantization is None:
            train_language(self.network)
            if training and self.network.dtype.itemsize < 4:
                rank_zero_warn(
                    f"all weights are trained in {self.network.dtype}, in which small steps round to nothing: "
                    "set dtype: float32, and precision: bf16-mixed of the trainer for speed"
                )
        if self.fused:
            fuse(self.network)
        if self.gradient_checkpointing:
            checkpoint_layers(self.network)
        spread = None
        if isinstance(self._strategy, ModelParallelStrategy):
            spread = partial(shard, mesh=self._strategy.device_mesh["data_parallel"])
        if doing != TrainerFn.TESTING:
            self.reference.begin(self.network, spread)
        if spread is not None:
            spread(self.network)

    @property
    def _strategy(self) -> Strategy | None:
        return None if self._trainer is None else self.trainer.strategy

    @property
    def trains_all(self) -> bool:
        """Whether all weights of the language model are trained, and not adapters."""
        return self.lora is None and self.adapter is None

    @property
    def shares_images(self) -> bool:
        """Whether the layout profits from pairs of one image in one batch; the command line tells the datamodule."""
        return bool(getattr(self.layout, "shares_images", False))

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - as Lightning has it
        """Return optimizer and schedule for the adapter's parameters.

        Raises:
            ValueError: There is a schedule, and training has no end to plan it for.
        """
        optimizer = self.optimizer([p for p in self.network.parameters() if p.requires_grad])
        check_optimizer(optimizer, sharded=self._sharded)
        if (schedule := self.schedule) is None:
            return optimizer
        if not math.isfinite(num_steps := self.trainer.estimated_stepping_batches):
            raise ValueError("a schedule needs to know when training ends: set max_epochs or max_steps of the trainer")
        rate = LambdaLR(optimizer, lambda step: schedule(step, int(num_steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Find the run's folder, for which all ranks must ask together."""
        self._folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)

    def configure_gradient_clipping(
        self,
        optimizer: Any,  # noqa: ANN401
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer says; under FSDPStrategy, where Lightning knows no norm of what is spread, here."""
        outermost = self._outermost
        by_value = gradient_clip_algorithm == "value"
        if gradient_clip_val and not by_value and isinstance(outermost, FullyShardedDataParallel):
            outermost.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return the sum of the losses of B pairs; the optimizer's step divides by their number."""
        return self._step(batch, "train")

    def on_before_optimizer_step(self, optimizer: Any) -> None:  # noqa: ANN401
        """Make the gradient the mean over the pairs of the step, and log the step's figures."""
        num_pairs, means = self._log("train")
        self.log("train/lr", optimizer.param_groups[0]["lr"], batch_size=1)
        # Lightning divided each batch's sum by the number of batches, and the strategy by that of ranks.
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / num_pairs
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        if self.falling is not None and (warning := self.falling(means["chosen_logratio"], self.trainer.global_step)):
            rank_zero_warn(warning)

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Take held-out pairs into the same figures. The batch is empty where none are held out."""
        if batch:
            self._step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the figures of all held-out pairs."""
        if "val" in self._sums:
            self._log("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        """Do nothing: under test, the evaluations speak."""

    def _step(self, batch: PreferenceBatch, split: str) -> Tensor:
        features = image_features(self.network, batch, self.kept)
        layout = self._tried(batch, features)
        if not self._ready:
            self.reference.prepare(self.network, partial(self._preparation, layout))
            self._ready = True
        laid = layout(self.network, batch)

        again = trains_encoder(self.network)  # asked while the adapters are on: they may be on the tower

        def score(network: Any) -> PairLogps:  # noqa: ANN401
            seen = image_features(network, batch) if again else features
            return inside(network, partial(pair_logps, network, laid, seen))

        reference = self.reference(self.network, batch.ids, score)
        policy = inside(self.network, partial(pair_logps, self.network, laid, features))
        terms = self.loss(policy, reference)
        refuse_nonfinite(terms.loss, batch.ids, policy, reference, step=self.trainer.global_step, folder=self._folder)
        rows = torch.stack([torch.ones_like(terms.chosen_rewards), *figures(terms, policy, reference)])
        self._sums[split] = self._sums.get(split, 0) + rows.sum(1)
        return terms.loss.sum()

    def _tried(self, batch: PreferenceBatch, features: Features) -> Layout:
        """Return the layout, or rows where it would get this model wrong; all ranks decide alike."""
        if self._trusted is None:
            if trains_encoder(self.network):
                with torch.no_grad(), self.adapters_off():
                    features = image_features(self.network, batch)
            reason = inside(self.network, partial(why_not_carried, self.layout, self.network, batch, features))
            carried = self.trainer.strategy.reduce_boolean_decision(reason is None, all=True)
            self._trusted = self.layout if carried else Rows()
            if not carried and self.trainer.is_global_zero:
                kind = type(self.layout).__name__
                sys.stderr.write(
                    f"layout: {kind} would get {self.policy} wrong ({reason or 'so found another rank'}); "
                    "plain rows are taken instead: as exact, slower, and twice the tokens in a batch\n"
                )
        return self._trusted

    def _preparation(self, layout: Layout) -> Preparation:
        """Say what a reference may have to compute before the first step."""
        data: Any = getattr(self.trainer, "datamodule", None)
        pairs = data.fingerprints() if hasattr(data, "fingerprints") else []

        def batches(blocks: Sequence[Sequence[int]]) -> Iterable[PreferenceBatch]:
            ids = [[pairs[place][0] for place in block] for block in blocks]
            for batch in data.reference_batches(ids):
                yield batch.to(self.device)

        def score(network: Any, batch: PreferenceBatch) -> PairLogps:  # noqa: ANN401
            laid, seen = layout(network, batch), image_features(network, batch, self.kept)
            return inside(network, partial(pair_logps, network, laid, seen))

        config = self.network.config
        recipe = {
            "policy": recipe_of(self.policy),
            "revision": getattr(config, "_commit_hash", None) or self.revision,
            "dtype": str(self.network.dtype),
            **({} if self.quantization is None else {"quantization": self.quantization}),
            "precision": str(self.trainer.precision),
            "device": self.device.type,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "fused": self.fused,
            "lora": not self.trains_all,
            "layout": {**recipe_of(layout), "version": VERSION},
            "chat": {"system_prompt": self.chat.system_prompt, "chat_template": self.chat.chat_template},
        }
        return Preparation(
            recipe=recipe,
            pairs=pairs,
            batches=batches,
            score=score,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            resumed=self.trainer.ckpt_path is not None,
            sharded=self._sharded,
        )

    @property
    def _sharded(self) -> bool:
        """Whether the weights are spread over the ranks, which then have to run every forward together."""
        return isinstance(self._strategy, FSDPStrategy | ModelParallelStrategy)

    @property
    def _outermost(self) -> nn.Module:
        """What the strategy has put around the module, if anything, or itself."""
        strategy = self._strategy
        return strategy.model if isinstance(strategy, FSDPStrategy) and strategy.model is not None else self

    def _log(self, split: str) -> tuple[float, dict[str, float]]:
        """Log means over pairs: of all batches since the last call, and of all ranks, each pair counting once.

        Returns:
            The number of pairs, and the means.
        """
        total = self.trainer.strategy.reduce(self._sums.pop(split), reduce_op="sum")
        num_pairs, *sums = total.tolist()
        means = {name: one / num_pairs for name, one in zip(Figures._fields, sums, strict=True)}
        for name, value in means.items():
            self.log(f"{split}/{name}", value, prog_bar=name in ("loss", "accuracy"), batch_size=1)
        return num_pairs, means

    def gathered_weights(self) -> dict[str, Tensor] | None:
        """Bring what is saved of the policy together on rank 0, for which all ranks have to ask; None if it is whole.

        Of a policy with adapters that is what is trained, of another all of it.
        """
        if not self._sharded:
            return None
        weights = gathered(self._outermost, trained=hasattr(self.network, "peft_config"))
        return {name.removeprefix("network."): value for name, value in weights.items()}

    @property
    def has_adapter(self) -> bool:
        """Whether the policy differs from its base: a fresh adapter's second factors are all zero."""
        factors = (value for name, value in self.network.named_parameters() if "lora_B" in name)
        parts = (factor.to_local() if isinstance(factor, DTensor) else factor for factor in factors)
        found = any(bool(part.any()) for part in parts)
        # A rank may hold none of what differs; all have to go the same way.
        return bool(self.trainer.strategy.reduce_boolean_decision(found, all=False)) if self._sharded else found

    def adapters_off(self) -> AbstractContextManager[None]:
        """Make the policy its own frozen base model for a while."""
        return adapters_off(self.network)

    def answer(self, images: Sequence[Image], questions: Sequence[str], *, max_new_tokens: int) -> list[Reply]:
        """Answer each question about its image, greedily. Ranks that share the weights must ask equally many."""
        with root_gathered(self._outermost):
            return reply(
                self.network,
                self.chat,
                images,
                questions,
                max_new_tokens=max_new_tokens,
                batch_size=self.answer_batch_size,
                kept=self.kept,
                synced=self._sharded,
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained parameters only, unless all are wanted: megabytes, not gigabytes."""
        if not self.checkpoint_base:
            trained = trained_of(self)
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        if self.falling is not None:
            checkpoint["falling"] = self.falling.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other adapters: without its base it is not strict, and would be taken as it is."""
        if self.falling is not None and "falling" in checkpoint:
            self.falling.load_state_dict(checkpoint["falling"])
        if "state_dict" not in checkpoint:  # shards, which a strategy has loaded
            return
        saved = checkpoint["state_dict"]
        trained = trained_of(self)
        if saved.keys() != trained.keys() and saved.keys() != self.state_dict().keys():
            differing = (trained.keys() - saved.keys()) or (saved.keys() - trained.keys())
            raise ValueError(
                f"the checkpoint's adapter is not on the layers of this run's ({min(differing)}, …): "
                "go on with the lora settings and the policy that it was trained with"
            )
        if self._sharded:  # a rank has parts only
            return
        if other := [name for name, parameter in trained.items() if saved[name].shape != parameter.shape]:
            was, now = (tuple(weights[other[0]].shape) for weights in (saved, trained))
            raise ValueError(
                f"the checkpoint's {other[0]} is of shape {was} and this run's of {now}: "
                "go on with the lora settings and the policy that it was trained with"
            )
