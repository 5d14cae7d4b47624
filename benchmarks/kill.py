"""Prove that a run that is killed at any moment goes on as if it had not been.

    python benchmarks/kill.py [--moments 20] [--ranks 1 2] [--out runs/kill]

A small model trains with dropout, steps of two batches, checkpoints after every step, the best of them once more, and
evaluations on the way. SIGKILL comes at moments drawn from a seed: a third of them while a checkpoint is written, a
third in an evaluation, a third in between; one that hits nothing is drawn again. Each time half-written and damaged
checkpoints are planted beside the real ones, and the same command runs again to its end. Its losses, its evaluations,
its best checkpoint and the bytes of its adapter must be those of a run that nobody killed. With two ranks one is
killed, and the other has to end by itself.

All runs are forked from one process that has imported what they need, through the command line's own entry.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw
from transformers.utils.logging import disable_progress_bar

from synthalign.callbacks.evaluate import Evaluate
from synthalign.cli import main as synthalign
from synthalign.dpo.policy import LoRA, load_policy
from synthalign.training import run as _run  # noqa: F401 - imported before the runs fork

VLM = Path(__file__).resolve().parents[1] / "synthalign" / "world" / "weights" / "vlm"
COLOURS, SHAPES = ("red", "green", "blue"), ("circle", "square")
PHASES = ("training", "writing a checkpoint", "evaluating")
STUCK_S = 60.0
"""A rank that has not ended so long after another was killed hangs."""

TRIES = 10
"""How often a kill that came before a run trained, or after it had, is drawn again."""

_forks = multiprocessing.get_context("fork")


class Losses(Callback):
    """Write every loss as it comes, bit for bit, so that a killed run has left its own behind."""

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - as Lightning has it
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Append batch and loss to the file of this run and rank."""
        name = Path(str(trainer.loggers[0].version)).name
        with Path(f"losses-{name}-{trainer.global_rank}.txt").open("a", encoding="utf-8") as file:
            number = trainer.fit_loop.epoch_loop.total_batch_idx
            file.write(f"{number} {outputs['loss'].item().hex()}\n")


def write_scene(folder: Path) -> None:
    """Write six drawings, twelve pairs about them, questions of POPE's kind, and the config."""
    (folder / "images").mkdir(parents=True)
    pairs: list[dict[str, Any]] = []
    questions: list[dict[str, Any]] = []
    for number, (colour, shape) in enumerate((colour, shape) for colour in COLOURS for shape in SHAPES):
        name = f"{colour}-{shape}.png"
        image = Image.new("RGB", (32, 32), "white")
        pen = ImageDraw.Draw(image)
        (pen.ellipse if shape == "circle" else pen.rectangle)((6, 6, 25, 25), fill=colour)
        image.save(folder / "images" / name)
        other = COLOURS[(COLOURS.index(colour) + 1) % len(COLOURS)], SHAPES[1 - SHAPES.index(shape)]
        for asked, chosen, rejected in (
            ("What is in the image?", f"There is a {colour} {shape}.", f"There is a {other[0]} {other[1]} and a dog."),
            (f"Is there a {shape} in the image?", f"Yes, there is a {shape}.", f"No, there is no {shape} at all."),
        ):
            human = {"from": "human", "value": f"<image> {asked}"}
            sides = {"conversations": chosen, "rejected_conversations": rejected}
            said = {key: [human, {"from": "gpt", "value": answer}] for key, answer in sides.items()}
            pairs.append({"id": f"pair-{len(pairs)}", "image": f"images/{name}", **said})
        label = "yes" if number % 2 else "no"
        questions.append({"question_id": number, "image": name, "text": "Is there a square?", "label": label})
    (folder / "pairs.json").write_text(json.dumps(pairs))
    (folder / "pope.json").write_text(json.dumps(questions))
    pope = {"files": {"all": "pope.json"}, "images": "images", "suffix": "", "max_new_tokens": 4}
    evaluate = {"evals": [{"class_path": "synthalign.evals.pope.POPE", "init_args": pope}], "every_n_steps": 3}
    keep = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    best = {"every_n_train_steps": 1, "monitor": "train/loss", "mode": "min", "filename": "best"}
    config = {
        "trainer": {
            "default_root_dir": "runs",
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "accumulate_grad_batches": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "Evaluate", "init_args": evaluate},
                {"class_path": "SaveAdapter"},
                {"class_path": f"{__name__}.Losses"},
                {"class_path": "ModelCheckpoint", "init_args": keep},
                {"class_path": "ModelCheckpoint", "init_args": best},
            ],
        },
        "model": {
            "class_path": "DPOModule",
            "init_args": {
                "policy": str(VLM),
                "lora": {"r": 4, "alpha": 8, "dropout": 0.2},
                "loss": {"class_path": "synthalign.dpo.losses.DPO", "init_args": {"beta": 0.5}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-2}},
                "schedule": {"class_path": "synthalign.dpo.schedules.WarmupCosine"},
            },
        },
        "data": {
            "class_path": "SyntheticPreferenceDataModule",
            "init_args": {"pairs": "pairs.json", "batch_size": 2, "val_share": 0.2, "seed": 1},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


class Marks:
    """What a run is doing, told from within it: per rank its phase, and how often each phase has begun."""

    def __init__(self, num_ranks: int) -> None:
        self.phase = _forks.Array("i", [-1] * num_ranks, lock=False)  # -1: not training yet, or no longer
        self.begun = _forks.Array("i", [0] * len(PHASES) * num_ranks, lock=False)

    def note(self, rank: int) -> None:
        """Let this process's run tell what it does; its parts do what they did."""

        def during(phase: int, real: Callable[..., Any]) -> Callable[..., Any]:
            def told(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
                before, self.phase[rank] = self.phase[rank], phase
                self.begun[rank * len(PHASES) + phase] += 1
                try:
                    return real(*args, **kwargs)
                finally:
                    self.phase[rank] = before

            return told

        def started(callback: Losses, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ANN401
            self.phase[rank] = 0
            self.begun[rank * len(PHASES)] += 1

        for owner, name, told in (
            (Losses, "on_train_batch_start", started),
            (Trainer, "save_checkpoint", during(1, Trainer.save_checkpoint)),
            (Evaluate, "_sit", during(2, Evaluate._sit)),
        ):
            setattr(owner, name, told)

    def count(self, rank: int, phase: int) -> int:
        """Return how often a phase of a rank has begun."""
        return self.begun[rank * len(PHASES) + phase]


@dataclass
class Run:
    """One run of the command line in a scene's folder, with as many ranks as wanted.

    Args:
        folder: The scene's.
        num_ranks: Processes.
    """

    folder: Path
    num_ranks: int
    marks: Marks = field(init=False)
    ranks: list[ForkProcess] = field(init=False)

    def __post_init__(self) -> None:
        """Start."""
        self.marks = Marks(self.num_ranks)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.ranks = [_forks.Process(target=self._be, args=(rank, port)) for rank in range(self.num_ranks)]
        for rank in self.ranks:
            rank.start()

    def _be(self, rank: int, port: int) -> None:
        os.chdir(self.folder)
        log = os.open(f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        flags: list[str] = []
        if self.num_ranks > 1:
            os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            flags = ["--trainer.strategy", "ddp", "--trainer.devices", str(self.num_ranks)]
            flags += ["--data.init_args.batch_size", "1"]
        self.marks.note(rank)
        synthalign(["fit", "--config", "config.yaml", "--ckpt_path", "last", *flags])

    def end(self) -> None:
        """Wait for the end, which must be a good one."""
        for number, rank in enumerate(self.ranks):
            rank.join()
            if rank.exitcode:
                log = (self.folder / f"log-{number}.txt").read_text()
                raise SystemExit(f"rank {number} ended with status {rank.exitcode}:\n{log[-3000:]}")

    def kill(self, victim: int, phase: int, occurrence: int, delay_s: float) -> str | None:
        """Kill a rank some time after a phase has begun that often; say what it was doing, None if it did not train."""
        process = self.ranks[victim]
        while self.marks.count(victim, phase) <= occurrence and process.is_alive():
            time.sleep(0.0005)
        wait([process.sentinel], timeout=delay_s)
        process.kill()
        process.join()
        doing = self.marks.phase[victim] if process.exitcode == -signal.SIGKILL else -1
        for other in self.ranks:
            other.join(STUCK_S)
            if other.is_alive():
                other.kill()
                raise SystemExit(f"a rank still ran {STUCK_S:.0f} s after another was killed")
        return PHASES[doing] if doing >= 0 else None


def outcome(folder: Path, num_ranks: int) -> dict[str, Any]:
    """Return what a finished run leaves behind: losses of all its parts, evaluations, its best, the adapter's bytes.

    Of a loss that several parts computed, all must agree.
    """
    losses: list[dict[int, str]] = []
    for rank in range(num_ranks):
        seen: dict[int, str] = {}
        for path in sorted(folder.glob(f"losses-fit*-{rank}.txt")):
            for line in path.read_text().splitlines():
                batch, _, loss = line.partition(" ")
                if seen.setdefault(int(batch), loss) != loss:
                    raise SystemExit(f"{path}: the loss of batch {batch} is another one after the kill")
        losses.append(dict(sorted(seen.items())))
    last = max((folder / "runs").glob("fit*"), key=lambda run: run.stat().st_mtime_ns)
    history = json.loads((last / "results.json").read_text())["history"]
    adapter = (last / "adapter" / "adapter_model.safetensors").read_bytes()
    best = torch.load(last / "checkpoints" / "best.ckpt", weights_only=True)
    weights = {name: value.numpy().tobytes() for name, value in best["state_dict"].items()}
    return {"losses": losses, "history": history, "best": (best["global_step"], weights), "adapter": adapter}


def plant(folder: Path) -> None:
    """Put half-written and damaged checkpoints of later steps beside the real ones."""
    for checkpoints in (folder / "runs").glob("fit*/checkpoints"):
        whole = sorted(checkpoints.glob("step=*.ckpt"))
        if not whole:
            continue
        content = whole[-1].read_bytes()
        damaged = bytearray(content)
        damaged[len(content) // 2] ^= 255
        (checkpoints / ".step=97.ckpt.part").write_bytes(content[: len(content) // 2])
        (checkpoints / "step=98.ckpt").write_bytes(content[: len(content) // 2])
        (checkpoints / "step=99.ckpt").write_bytes(damaged)


def prove(out: Path, num_ranks: int, moments: int) -> Counter[str]:
    """Kill runs at so many moments, and return how many fell into each phase.

    Raises:
        SystemExit: A run did not end as the undisturbed one did; or no kill fell into one of the phases.
    """
    scene = out / f"ranks-{num_ranks}" / "scene"
    write_scene(scene)
    undisturbed = Path(shutil.copytree(scene, scene.parent / "undisturbed"))
    begun = time.monotonic()
    whole = Run(undisturbed, num_ranks)
    whole.end()
    expected = outcome(undisturbed, num_ranks)
    batch_s = (time.monotonic() - begun) / len(expected["losses"][0])
    fell: Counter[str] = Counter()
    for moment in range(moments):
        folder = scene.parent / f"moment-{moment}"
        fell[kill_one(scene, folder, whole, moment, batch_s / 4)] += 1  # only about as long as what it falls into
        plant(folder)
        Run(folder, num_ranks).end()
        found = outcome(folder, num_ranks)
        for what, value in expected.items():
            if found[what] != value:
                raise SystemExit(f"moment {moment} with {num_ranks} ranks: {what} differ after the kill, see {folder}")
        shutil.rmtree(folder)
    if moments >= len(PHASES) and (missed := set(PHASES) - set(fell)):
        raise SystemExit(f"no kill of {moments} with {num_ranks} ranks fell into {', '.join(sorted(missed))}")
    return fell


def kill_one(scene: Path, folder: Path, whole: Run, moment: int, batch_s: float) -> str:
    """Run a copy of the scene until it is killed in training, and return what it was doing."""
    for again in range(TRIES):
        rng = Random(f"{moment} {again} {whole.num_ranks}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(scene, folder)
        phase, victim = (moment + whole.num_ranks) % len(PHASES), rng.randrange(whole.num_ranks)
        occurrence = rng.randrange(whole.marks.count(victim, phase))
        delay_s = rng.uniform(0, batch_s if phase == 0 else batch_s / 8)
        doing = Run(folder, whole.num_ranks).kill(victim, phase, occurrence, delay_s)
        if doing is not None:
            return doing
    raise SystemExit(f"moment {moment} with {whole.num_ranks} ranks: {TRIES} kills came before or after training")


def main() -> None:
    """Prove it for each number of ranks, and say what was killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="kills for each number of ranks")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    parser.add_argument("--out", type=Path, default=Path("runs/kill"), help="folder of the runs; made anew")
    options = parser.parse_args()
    out = options.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    warm_up()
    for num_ranks in options.ranks:
        begun = time.monotonic()
        fell = prove(out, num_ranks, options.moments)
        where = ", ".join(f"{number} {phase}" for phase, number in sorted(fell.items()))
        took = time.monotonic() - begun
        print(f"{num_ranks} ranks: {options.moments} kills ({where}); all went on exactly; {took:.0f} s", flush=True)


def warm_up() -> None:
    """Import what a run imports late, and start no threads, which a fork would lose."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT asks by the old name
    disable_progress_bar()
    LoRA()(load_policy(str(VLM)))


if __name__ == "__main__":
    main()
