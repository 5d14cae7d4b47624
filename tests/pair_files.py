"""Sets of preference pairs, as files of every format."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from synthalign import tables
from synthalign.tables import PairRow, read_pairs

RED, BLUE = (200, 10, 10), (10, 10, 200)


def png(color: tuple[int, int, int], size: tuple[int, int] = (5, 4)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "PNG")
    return stream.getvalue()


def write_images(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "red.png").write_bytes(png(RED))
    (folder / "images" / "blue.png").write_bytes(png(BLUE, (7, 3)))
    return folder


def authors(pair_id: str, image: str, question: str, chosen: str, rejected: str) -> dict[str, Any]:
    asked = {"from": "human", "value": f"<image> {question}"}
    return {
        "id": pair_id,
        "image": f"images/{image}",
        "conversations": [asked, {"from": "gpt", "value": chosen}],
        "rejected_conversations": [asked, {"from": "gpt", "value": rejected}],
    }


def trl(question: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    def turn(role: str, content: Any) -> list[dict[str, Any]]:
        return [{"role": role, "content": content}]

    asked = [{"type": "image", "text": None}, {"type": "text", "text": question}]
    return {
        "prompt": turn("user", asked),
        "chosen": turn("assistant", [{"type": "text", "text": chosen}]),
        "rejected": turn("assistant", [{"type": "text", "text": rejected}]),
        **more,
    }


def write_json(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def the_line(path: Path, **settings: Any) -> str:
    """The message of a mistake in a pairs file, which must be one line."""
    with pytest.raises(ValueError) as caught:
        read_pairs(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


TWO = [("cat", "red.png", "What is it?", "A cat.", "A dog."), ("who", "blue.png", "Who?", "“Nobody.”", "誰もいない")]
READ = [
    PairRow("cat", "images/red.png", "What is it?", "A cat.", "A dog."),
    PairRow("who", "images/blue.png", "Who?", "“Nobody.”", "誰もいない"),
]


def our_pair(pair_id: str, **more: Any) -> dict[str, Any]:
    image_id, question = pair_id.rpartition("/")[0], "What is it?"
    return {"id": pair_id, "image_id": image_id, "prompt": "a cat", "question": question, "refused": [], **more}


def kept(pair_id: str, color: tuple[int, int, int]) -> dict[str, Any]:
    scores = {"chosen_score": 1.5, "rejected_score": 0.25}
    sides = {"chosen": "A cat.", "rejected": "A dog.", "chosen_responder": "a", "rejected_responder": "b"}
    return our_pair(pair_id, image={"bytes": png(color), "path": None}, **scores, **sides)


def write_shard(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=tables.PAIRS), folder / name)
