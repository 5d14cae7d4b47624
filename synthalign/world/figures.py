"""The base VLM's figures on the validation scenes, with which a training of the world's models ends."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from synthalign.vlm import VLM
from synthalign.world import data
from synthalign.world.language import words
from synthalign.world.scenes import OBJECTS


def base_figures(folder: Path) -> dict[str, float]:
    """Ask a VLM greedily for the validation captions and POPE's questions.

    Args:
        folder: Folder of the VLM.

    Returns:
        ``chair_i``, ``coverage``, and POPE's accuracy in each split.
    """
    vlm = VLM(model=str(folder), dtype="float32", device="cpu", max_new_tokens=64, batch_size=128)
    with TemporaryDirectory() as temporary:
        data.write(Path(temporary), seed=0, num_prompts=1, num_scenes=1)
        split = Path(temporary) / "validation"
        images = {path.name: Image.open(path).convert("RGB") for path in (split / "images").iterdir()}
        rows = [json.loads(line) for line in (split / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
        replies = vlm.respond([images[row["image"]] for row in rows], [row["question"] for row in rows])
        named = [[word for word in words(reply.text) if word in OBJECTS] for reply in replies]
        invented = sum(kind not in row["objects"] for row, kinds in zip(rows, named, strict=True) for kind in kinds)
        covered = sum(len(set(row["objects"]) & set(kinds)) for row, kinds in zip(rows, named, strict=True))
        figures = {
            "chair_i": invented / max(1, sum(map(len, named))),
            "coverage": covered / sum(len(row["objects"]) for row in rows),
        }
        for path in sorted((split / "pope").iterdir()):
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            replies = vlm.respond([images[row["image"]] for row in rows], [row["text"] for row in rows])
            right = sum(reply.text.lower().startswith(row["label"]) for row, reply in zip(rows, replies, strict=True))
            figures[f"pope_{path.stem}"] = right / len(rows)
        return figures
