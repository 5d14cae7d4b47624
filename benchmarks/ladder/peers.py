"""The peers: TRL's own training step, and full fp32 logits as LLaMA-Factory computes them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from torch.nn.functional import logsigmoid

from synthalign.dpo.policy import adapters_off

from .measure import Contender
from .scene import Scene, Size, adapters, processor, rows, spread_adapters, twin

BETA = 0.1


def trl(scene: Scene, size: Size, folder: str, *, one_image: bool, checkpointing: bool) -> Contender:
    """Return TRL's model, the step of its real trainer, and its optimizer at a learning rate of 0.

    Weights are of the scene's type. Where that is bf16, TRL autocasts besides, as is its default: or its adapters,
    which are fp32, would be multiplied in fp32.

    Args:
        scene: Model and batch.
        size: What they were made from.
        folder: For the trainer's output, which stays empty.
        one_image: As the scene was made.
        checkpointing: TRL's default is True.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    settings = adapters(scene.rank)
    device, bf16 = scene.collated["input_ids"].device, scene.network.dtype == torch.bfloat16
    trainer = DPOTrainer(
        twin(scene.network),
        args=DPOConfig(
            folder,
            beta=BETA,
            per_device_train_batch_size=len(scene.batch),
            learning_rate=0.0,
            max_length=None,
            gradient_checkpointing=checkpointing,
            bf16=bf16,
            use_cpu=device.type == "cpu",
            report_to=[],
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(rows(size, one_image=one_image)),
        processing_class=processor(size, scene.network.config),
        peft_config=LoraConfig(
            r=settings["r"], lora_alpha=settings["alpha"], target_modules=settings["target_modules"]
        ),
    )
    if (precision := trainer.accelerator.mixed_precision) != ("bf16" if bf16 else "no"):
        raise RuntimeError(f"TRL computes in mixed precision {precision!r}, where weights are {scene.network.dtype}")
    network = trainer.accelerator.prepare_model(trainer.model)  # `train` does these three as it begins
    if checkpointing:
        network.activation_checkpointing_enable(trainer.args.activation_checkpointing_kwargs)
    trainer.current_gradient_accumulation_steps = 1
    spread_adapters(network)
    optimizer = trainer.create_optimizer()
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"] = 0.0

    def step() -> Tensor:
        with response_tokens_only():
            return trainer.training_step(network, dict(scene.collated))

    check_head(step, sum(len(side) for side in (*scene.batch.chosen, *scene.batch.rejected)))
    return Contender(network, step, optimizer)


@contextmanager
def response_tokens_only() -> Iterator[None]:
    """Make TRL's head score response tokens only, as it does on CUDA; elsewhere it scores every token of every row.

    TRL asks `_use_triton` of `trl.trainer.utils` which tokens to score. Its kernel asks another, of its own module, and
    stays what it is on this device.
    """
    utils: Any = import_module("trl.trainer.utils")
    own = utils._use_triton
    utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._use_triton = own


def check_head(step: Callable[[], Tensor], num_scored: int) -> None:
    """Run TRL's step once and see that its head scores the response tokens, for policy and reference, and no others.

    Raises:
        RuntimeError: It scores others: this version of TRL decides in another way.
    """
    utils: Any = import_module("trl.trainer.utils")
    kernel, seen = utils._ChunkedLogProbFunction, list[int]()

    class Counted:
        @staticmethod
        def apply(hidden: Tensor, *others: Any) -> Any:  # noqa: ANN401
            seen.append(len(hidden))
            return kernel.apply(hidden, *others)

    utils._ChunkedLogProbFunction = Counted
    try:
        step()
    finally:
        utils._ChunkedLogProbFunction = kernel
    if seen != [num_scored, num_scored]:
        raise RuntimeError(f"TRL's head scored {seen} tokens, where two times {num_scored} were expected")


def full_logits(network: Any, collated: dict[str, Tensor]) -> Callable[[], Tensor]:  # noqa: ANN401
    """Return a step with logits of every token, in fp32, chosen and rejected rows as one batch.

    So LLaMA-Factory computes them, autocasting where weights are bf16; the lines are our own.
    """
    inputs = {key: value for key, value in collated.items() if key != "completion_mask"}
    targets, spoken = collated["input_ids"][:, 1:], collated["completion_mask"][:, 1:]
    autocast = torch.autocast(targets.device.type, torch.bfloat16, enabled=network.dtype == torch.bfloat16)

    def sums() -> Tensor:
        with autocast:
            logits = network(**inputs, use_cache=False).logits.float()
        logps = logits[:, :-1].log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
        return (logps * spoken).sum(-1)

    def step() -> Tensor:
        policy = sums()
        with torch.no_grad(), adapters_off(network):
            reference = sums()
        chosen, rejected = (policy - reference).chunk(2)
        loss = -logsigmoid(BETA * (chosen - rejected)).mean()
        loss.backward()
        return loss.detach()

    return step


def quiet() -> None:
    """Keep progress and advice of the peers' libraries off the terminal."""
    import datasets

    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    datasets.disable_progress_bars()
