"""Benchmarks and prompts small enough for a test: drawings of coloured squares, and questions about them."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLORS = ("red", "green", "blue", "yellow")


def draw(path: Path, color: str) -> None:
    image = Image.new("RGB", (40, 32), "white")
    ImageDraw.Draw(image).rectangle((8, 8, 24, 24), fill=color)
    image.save(path)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_benchmarks(root: Path) -> None:
    """Write images/, all that asks about them (pope/, mmhal.json, captions.jsonl, amber/, mme/), and prompts.jsonl."""
    (root / "images").mkdir(parents=True)
    (root / "pope").mkdir()
    names = [f"{color}.png" for color in COLORS]
    for name, color in zip(names, COLORS, strict=True):
        draw(root / "images" / name, color)
    for shift, split in enumerate(("random", "popular", "adversarial"), 1):
        rows: list[dict[str, Any]] = []
        for number, name in enumerate(names):
            for truth, color in (("yes", COLORS[number]), ("no", COLORS[(number + shift) % 4])):
                question = f"Is there a {color} square in the image?"
                rows.append({"question_id": len(rows) + 1, "image": name, "text": question, "label": truth})
        write_lines(root / "pope" / f"{split}.json", rows)
    kinds = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
    items = [
        {
            "question_type": kind,
            "question_topic": "squares",
            "image_id": str(number),
            "image_src": names[number % 4],
            "image_content": [f"{COLORS[number % 4]} square"],
            "question": "What is in the image?",
            "gt_answer": f"A {COLORS[number % 4]} square.",
            "model_answer": "",
        }
        for number, kind in enumerate(kinds)
    ]
    (root / "mmhal.json").write_text(json.dumps(items), encoding="utf-8")
    captions = [
        {"id": name, "image": name, "question": "Describe the image in detail.", "objects": ["square"]}
        for name in names
    ]
    write_lines(root / "captions.jsonl", captions)
    (root / "objects.txt").write_text("square\ncircle\n", encoding="utf-8")
    write_amber(root / "amber", names)
    for task in ("existence", "count", "position", "color"):
        (root / "mme" / task).mkdir(parents=True)
        for name, color in zip(names, COLORS, strict=True):
            draw(root / "mme" / task / name, color)
            lines = f"Is there a {color} square?\tYes\nIs there a {color} circle?\tNo\n"
            (root / "mme" / task / f"{color}.txt").write_text(lines, encoding="utf-8")
    prompts = [
        {"id": f"p{n}", "prompt": f"a {color} cup", "questions": ["Describe the image in detail.", "Is there a dog?"]}
        for n, color in enumerate(COLORS)
    ]
    write_lines(root / "prompts.jsonl", prompts)


def write_amber(root: Path, names: list[str]) -> None:
    """Write AMBER's files about the drawings: each is described, then asked about."""
    (root / "query").mkdir(parents=True)
    queries = [{"id": n, "image": name, "query": "Describe this image."} for n, name in enumerate(names, 1)]
    truths: list[dict[str, Any]] = [
        {"id": query["id"], "type": "generative", "truth": ["square"], "hallu": ["circle"]} for query in queries
    ]
    kinds = ("hallucination", "attribute-state", "attribute-number", "attribute-action", "relation")
    for kind in kinds:
        for name, truth in zip(names, ("yes", "no", "yes", "no"), strict=True):
            queries.append({"id": len(queries) + 1, "image": name, "query": f"Is this {kind} right?"})
            truths.append({"id": len(queries), "type": f"discriminative-{kind}", "truth": truth})
    (root / "query" / "query_all.json").write_text(json.dumps(queries), encoding="utf-8")
    (root / "annotations.json").write_text(json.dumps(truths), encoding="utf-8")
    (root / "relation.json").write_text(json.dumps({"square": ["block"], "circle": ["ring"]}), encoding="utf-8")
    (root / "safe_words.txt").write_text("ground\n", encoding="utf-8")


def write_pairs(path: Path, images: Path) -> None:
    """Write ten pairs about the drawings in the Synth-Align authors' format."""
    rows = []
    for number in range(10):
        color = COLORS[number % 4]
        question = {"from": "human", "value": "<image> Describe the image in detail."}
        chosen = f"A {color} square on a white ground, number {number}."
        rejected = f"A {color} square beside a dog and a cup, number {number}."
        rows.append(
            {
                "id": f"drawing-{number}",
                "image": f"{color}.png",
                "conversations": [question, {"from": "gpt", "value": chosen}],
                "rejected_conversations": [question, {"from": "gpt", "value": rejected}],
            }
        )
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
