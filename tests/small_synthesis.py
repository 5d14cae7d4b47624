"""A whole synthesis of small real parts: the offline world's renderer and tiny models of every kind."""

import functools
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from synthalign.pairs import Echo, Empty, ForeignScript, Identical, TooClose
from synthalign.pipeline import Synthesis
from synthalign.rewards.clip import CLIPReward
from synthalign.rewards.sequence_classification import SequenceClassificationReward
from synthalign.vlm import VLM
from synthalign.world.generator import Renderer
from synthalign.world.language import caption
from synthalign.world.scenes import Item

QUESTIONS = ("Is there a dog in the image?", "Describe the image in detail.", "What colour is the cup?")

# Ranks are processes forked from one that has imported everything: a second each, not ten.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        "synthalign.pipeline",
        "synthalign.rewards.clip",
        "synthalign.rewards.sequence_classification",
        "synthalign.vlm",
        "synthalign.world.generator",
        "transformers.generation.utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.processing_auto",
        "transformers.models.clip.modeling_clip",
        "transformers.models.clip.processing_clip",
        "transformers.models.clip.image_processing_pil_clip",
        "transformers.models.llama.modeling_llama",
        "transformers.models.llava.modeling_llava",
        "transformers.models.llava.processing_llava",
    ]
)


def prompt_rows(number: int, questions: int = 2) -> list[dict[str, Any]]:
    """Captions of the offline world, all different, with the first questions each."""
    themes = {"kitchen": "cup", "road": "car", "garden": "tree", "study": "book"}
    colors = ("red", "green", "blue", "yellow", "purple", "black")
    rows = []
    for n in range(number):
        theme = list(themes)[n % 4]
        items = [Item(themes[theme], colors[n // 4 % 6], n // 24 % 9)]
        rows.append({"id": f"{theme}-{n}", "prompt": caption(theme, items), "questions": list(QUESTIONS[:questions])})
    return rows


def write_prompts(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write a prompts file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def small_synthesis(folder: Path, models: dict[str, str], **settings: Any) -> Synthesis:
    """Two responders, two samples each, two images a prompt; prompts.jsonl and store/ are in ``folder``."""
    small = Synthesis(
        prompts=str(folder / "prompts.jsonl"),
        store=str(folder / "store"),
        generator=Renderer(),
        image_reward=CLIPReward(model=models["clip"]),
        responders=[
            VLM(model=models["llava"], max_new_tokens=6),
            VLM(model=models["llava"], max_new_tokens=6, temperature=1.5, top_k=20),
        ],
        response_reward=SequenceClassificationReward(model=models["reward"], question_format="{prompt}\n{question}"),
        # Random models end no sentence: the gates that would notice are left out.
        response_gates=[Empty(), Echo(), ForeignScript()],
        pair_gates=[Identical(), TooClose()],
        num_images=2,
        num_samples=2,
        shard_size=2,
    )
    return replace(small, **settings)


def start_ranks(synthesis: Synthesis, world_size: int = 1, counts: Path | None = None) -> list[BaseProcess]:
    """Run a synthesis on as many processes as it has ranks; each leaves its counts in a folder, if one is given."""
    ranks: list[BaseProcess] = [
        _forks.Process(target=_run, args=(synthesis, rank, world_size, counts)) for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    return ranks


def run_ranks(synthesis: Synthesis, world_size: int = 1, counts: Path | None = None) -> None:
    """Run a synthesis on that many processes to its end."""
    for process in start_ranks(synthesis, world_size, counts):
        process.join()
        assert process.exitcode == 0
        process.close()


def _run(synthesis: Synthesis, rank: int, world_size: int, counts: Path | None) -> None:
    asked = {} if counts is None else {kind.__name__: count_calls(kind, name) for kind, name in COUNTED}
    synthesis.run(rank, world_size)
    if counts is not None:
        (counts / f"{rank}.json").write_text(json.dumps({name: sum(sizes) for name, sizes in asked.items()}))


COUNTED = ((Renderer, "generate"), (CLIPReward, "score"), (VLM, "respond"), (SequenceClassificationReward, "score"))
"""The parts of a small synthesis, and what each is asked by."""


def count_calls(kind: type, method: str) -> list[int]:
    """Let a part note how many rows each call asks it for; it goes on as before."""
    real, sizes = getattr(kind, method), list[int]()

    @functools.wraps(real)
    def counted(self: Any, first: Sequence[Any], *rest: Any) -> Any:
        sizes.append(len(first))
        return real(self, first, *rest)

    setattr(kind, method, counted)
    return sizes


def shard_bytes(store: Path, stage: str = "") -> dict[str, bytes]:
    """The landed shards of a store, of one stage or of all, by landing and name."""
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.glob(f"{stage}*/*.parquet"))}


def stamps(store: Path) -> dict[str, tuple[int, int]]:
    """What changes when a shard is written again."""
    paths = sorted(store.glob("*/*.parquet"))
    return {str(path.relative_to(store)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}
