"""Stores of landings written by hand: every column of the journey, and whatever text a model might write."""

import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from synthalign.store import Landing, Shard, digest
from synthalign.tables import ANSWERS, DRAWS, IMAGES, PAIRS, RANKS, SCORES

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><!-- <script> & é \u2028 ]]>"

RECIPES: dict[str, dict[str, Any]] = {
    "draw": {"generator": {"class": "synthalign.diffusion.Diffusers", "model": "some/sd"}, "seed": 0, "num_images": 3},
    "rank": {"image_reward": {"class": "synthalign.rewards.clip.CLIPReward", "model": {"content": "00"}}},
    "pick": {"weights": {"": 1.0}},
    "answer": {"responder": {"class": "synthalign.vlm.VLM", "max_new_tokens": 32}, "num_samples": 2, "seed": 0},
    "score": {"response_reward": {"class": "synthalign.rewards.armorm.ArmoRM"}},
    "pair": {"rule": {"class": "synthalign.pairs.BestWorst"}, "gates": []},
}
SCHEMAS = {"draw": DRAWS, "rank": RANKS, "pick": IMAGES, "answer": ANSWERS, "score": SCORES, "pair": PAIRS}


def png(color: tuple[int, int, int], side: int = 40) -> bytes:
    """A plain image."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side), color).save(stream, "PNG")
    return stream.getvalue()


class Store:
    """A store under way: ``land`` writes some prompts' rows of some stages; ``settings`` go into the recipes."""

    def __init__(self, root: Path, **settings: dict[str, Any]) -> None:
        recipes = {stage: RECIPES[stage] | settings.get(stage, {}) for stage in RECIPES}
        self.root = root
        self.landings: dict[str, Landing] = {}
        for stage, names in {
            "draw": None,
            "rank": ("draw",),
            "pick": ("draw", "rank"),
            "answer": ("pick",),
            "score": ("answer",),
            "pair": ("score",),
        }.items():
            before = {name: self.landings[name].address for name in names or ()}
            if stage == "score":
                before = {"answers": [before["answer"]]}  # type: ignore[dict-item]
            self.landings[stage] = Landing(root, stage, recipes[stage] | before, SCHEMAS[stage])
        self.names: list[str] = []

    def land(self, numbers: Sequence[int], stages: Sequence[str] = tuple(SCHEMAS), **said: Any) -> None:
        """Land the rows of prompts 0, 1, …: one shard in each stage."""
        shard = Shard(0, "h", digest(list(numbers)), tuple(numbers))
        rows = {"draw": drawn, "rank": ranked, "pick": picked, "answer": answered, "score": scored, "pair": paired}
        for stage in stages:
            make: Callable[..., dict[str, Any]] = rows[stage]
            self.landings[stage].write(shard, [make(n, **said) if stage == "pair" else make(n) for n in numbers])
        self.names.append(shard.name)

    def table(self, name: str = "0" * 16, *, written_at: float | None = None) -> Path:
        """Finish the run: name its shards in a table."""
        path = self.landings["pair"].folder / f"{name}.table"
        path.write_text(json.dumps(self.names))
        if written_at is not None:
            os.utime(path, (written_at, written_at))
        return path


def drawn(n: int) -> dict[str, Any]:
    """Three candidates: red, green and blue, at rising guidance."""
    colors = ((220, 10, n % 250), (10, 220, n % 250), (n % 250, 10, 220))
    candidates = [
        {"seed": 2**62 + n, "guidance_scale": scale, "image": png(color)}
        for scale, color in zip((5.0, 7.0, 9.0), colors, strict=True)
    ]
    return {"key": f"k{n}", "id": f"kitchen-{n:04d}", "prompt": f"A kitchen, number {n}", "candidates": candidates}


def ranked(n: int) -> dict[str, Any]:
    """The green one is best; the blue one has no finite score."""
    return {"key": f"k{n}", "id": f"kitchen-{n:04d}", "scores": [1.0, 2.0 + n, None]}


def picked(n: int) -> dict[str, Any]:
    """The green one."""
    image = drawn(n)["candidates"][1]["image"]
    return ranked(n) | {"prompt": f"A kitchen, number {n}", "image": image, "best": 1}


def answered(n: int) -> dict[str, Any]:
    """Two responses, the second one cut off."""
    responses = [{"text": f"A red cup {n}.", "truncated": False}, {"text": f"A blue cup {n} and", "truncated": True}]
    return _question(n) | {"responder": "vlm-a", "responses": responses}


def scored(n: int) -> dict[str, Any]:
    """The same, scored."""
    responses = answered(n)["responses"]
    candidates = [{"responder": "vlm-a", **one, "score": score} for one, score in zip(responses, (2, -1), strict=True)]
    return _question(n) | {"candidates": candidates}


def paired(n: int, *, chosen: str = "A red cup.", rejected: str = "A blue cup.", dropped: str | None = None) -> Any:
    """A pair from four candidates of two responders, one of them refused; or none, and why."""
    candidates = [
        _candidate("vlm-a", chosen, 3.0),
        _candidate("vlm-b", rejected, 0.5, truncated=True),
        _candidate("vlm-a", "Something between.", 1.5, scores=[{"reward": "armo", "score": 1.5}]),
        _candidate("vlm-b", "", None, refused="empty", detail="no letter or digit in ''"),
    ]
    row = {name: value for name, value in _question(n).items() if name != "key"}
    row |= {"image_key": f"k{n}", "prompt": f"A kitchen, number {n}", "candidates": candidates}
    if dropped is not None:
        return row | {"dropped": dropped, "detail": f"because of {n}"}
    row |= {"chosen": chosen, "chosen_score": 3.0, "chosen_responder": "vlm-a", "rejected": rejected}
    row |= {"rejected_score": 0.5, "rejected_responder": "vlm-b"}
    return row | {"image": {"bytes": drawn(n)["candidates"][1]["image"], "path": None}}


def _candidate(responder: str, text: str, score: float | None, **more: Any) -> dict[str, Any]:
    blank = {"truncated": False, "scores": [], "refused": None, "detail": None}
    return {"responder": responder, "text": text, "score": score, **blank, **more}


def _question(n: int) -> dict[str, Any]:
    return {"key": f"q{n}", "id": f"kitchen-{n:04d}/0", "image_id": f"kitchen-{n:04d}", "question": f"Which cup? {n}"}
