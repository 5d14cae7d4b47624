"""A policy of two parameters that says whether an image is bright, with what it is asked, and its trainers."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from synthalign.evals.chair import CHAIR
from synthalign.evals.mmhal.benchmark import TYPES, MMHal
from synthalign.evals.pope import POPE
from synthalign.types import Eval, Judge, Judgement, Reply

SHADES = (20, 60, 90, 120, 160, 200, 240)
BRIGHT = 130


class Brightness(LightningModule):
    """A policy of two parameters. Its base says yes to everything; the adapter learns which images are bright."""

    has_adapter = True

    def __init__(self, slope: float = 0.0, *, dropout: float = 0.5, fails_at: int | None = None) -> None:
        super().__init__()
        self.noise: list[float] = []
        self.base_margin = 1.0
        self.adapter = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.adapter.weight, slope)
        torch.nn.init.constant_(self.adapter.bias, 0.0)
        self.dropout = torch.nn.Dropout(dropout)
        self.adapter_on = True
        self.fails_at = fails_at
        self.losses: list[float] = []
        self.asked: Counter[tuple[int, str]] = Counter()

    def forward(self, shades):
        centred = (shades - BRIGHT) / 100
        return self.base_margin + self.adapter(self.dropout(centred)) * self.adapter_on

    def answer(self, images, questions, *, max_new_tokens):
        assert not self.training and not self.dropout.training and not torch.is_grad_enabled()
        random.random(), numpy.random.rand(), torch.rand(3)  # a policy may use random numbers; training must not notice
        shades = [image.getpixel((0, 0))[0] for image in images]
        self.asked.update(zip(shades, questions, strict=True))
        margins = self(torch.tensor(shades, dtype=torch.float32)[:, None])[:, 0].tolist()
        captions = ["a lamp" if margin > 0 else "a shadow" for margin in margins]
        return [
            Reply(caption) if "Describe" in text else Reply("Yes" if margin > 0 else "No", False, margin)
            for margin, caption, text in zip(margins, captions, questions, strict=True)
        ]

    @contextmanager
    def adapters_off(self):
        self.adapter_on = False
        yield
        self.adapter_on = True

    def training_step(self, batch, batch_idx):
        self.noise.append(random.random() + float(numpy.random.rand()))
        if self.global_step == self.fails_at:
            raise RuntimeError("the training broke")
        shades, bright = batch
        loss = torch.nn.functional.binary_cross_entropy_with_logits(self(shades), bright)
        self.log("loss", loss)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def loader(*, shuffle=False):
    shades = torch.tensor(SHADES, dtype=torch.float32)[:, None]
    return DataLoader(TensorDataset(shades, (shades > BRIGHT).float()), batch_size=2, shuffle=shuffle)


def write_files(folder: Path, shades: Sequence[int] = SHADES) -> None:
    """Write images, and the files of all evaluations of them. POPE's second split lacks the first image."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for shade in shades:
        Image.new("L", (3, 3), shade).save(images / f"{shade}.png")  # grey: the policy must get RGB
    truth = {shade: "yes" if shade > BRIGHT else "no" for shade in shades}
    for split, some in (("random", shades), ("adversarial", shades[1:] or shades)):
        rows = [
            {"question_id": number, "image": f"{shade}.png", "text": "Is it bright?", "label": truth[shade]}
            for number, shade in enumerate(some)
        ]
        (folder / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    captions = [
        {"id": f"c{shade}", "image": f"{shade}.png", "question": "Describe it.", "objects": ["lamp"]}
        for shade in shades
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))
    (folder / "objects.txt").write_text("lamp\nshadow\n")
    items = [
        {
            "question_type": TYPES[number % len(TYPES)],
            "image_id": str(shade),
            "image_src": f"{shade}.png",
            "image_content": [],
            "question": "Describe it.",
            "gt_answer": "",
        }
        for number, shade in enumerate(shades)
    ]
    (folder / "mmhal.json").write_text(json.dumps(items))


def pope(folder: Path) -> POPE:
    files = {split: folder / f"{split}.json" for split in ("random", "adversarial")}
    return POPE(files=files, images=folder / "images", suffix="")


def chair(folder: Path) -> CHAIR:
    return CHAIR(
        file=folder / "captions.jsonl", images=folder / "images", synonyms=folder / "objects.txt", name="captions"
    )


def mmhal(folder: Path, judge: Judge | None) -> MMHal:
    return MMHal(file=folder / "mmhal.json", images=folder / "images", judge=judge)


def evaluations(folder: Path) -> list[Eval]:
    """Write the files, and return POPE and CHAIR."""
    write_files(folder)
    return [pope(folder), chair(folder)]


@dataclass
class Letters:
    """A judge that rates by the number of letters; after some calls it is down."""

    calls_until_down: int = 1000
    rated: int = field(default=0, init=False)

    def about(self) -> dict[str, str]:
        return {"judge": "letters", "judge_revision": "1", "judge_prompt": "none"}

    def judge(
        self,
        contents: Sequence[Sequence[str]],
        questions: Sequence[str],
        references: Sequence[str],
        answers: Sequence[str],
    ) -> list[Judgement]:
        if self.calls_until_down == 0:
            raise RuntimeError("the judge at localhost:1 does not answer")
        self.calls_until_down -= 1
        self.rated += len(answers)
        return [Judgement(len(answer) % 7, "", True) for answer in answers]

    def release(self) -> None:
        """A count of letters holds no memory."""


def trainer_in(folder: Path, callbacks, **settings) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "logger": CSVLogger(folder, name="", version="run"),
            "default_root_dir": folder,
            "callbacks": callbacks,
            "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **settings,
        }
    )


def fit(folder: Path, callbacks, model=None, *, ckpt_path=None, validation=False, data=None, **settings):
    seed_everything(0, verbose=False)
    model = model or Brightness()
    trainer = trainer_in(folder, callbacks, **settings)
    trainer.fit(model, data or loader(shuffle=True), loader() if validation else None, ckpt_path=ckpt_path)
    return trainer, model


def samples(run: Path, label: str, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / "samples" / label / f"{name}.jsonl").read_text().splitlines()]
