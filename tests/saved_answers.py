"""Small benchmarks with saved answers, written by hand: what ``synthalign score`` reads."""

import json
from pathlib import Path
from typing import Any

POPE = (("Yes", "yes"), ("No", "no"), ("Yes, it is.", "no"), ("Yes", "yes"))
"""Replies and labels of one split: 2 tp, 1 fp, 1 tn."""

ADVERSARIAL = (("No", "yes"), ("no.", "no"), ("It is unclear", "no"), ("Yes", "yes"))
"""1 tp, 1 fp, 1 tn, 1 fn; the third is unclear, and counts as yes."""


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pope(folder: Path) -> None:
    """Write coco_pope_{random,adversarial}.json and answers_{random,adversarial}.jsonl."""
    for split, said in (("random", POPE), ("adversarial", ADVERSARIAL)):
        asked = [
            {"question_id": i, "image": f"{i // 2}.jpg", "text": f"Is there a {('cup', 'dog')[i % 2]}?", "label": key}
            for i, (_, key) in enumerate(said)
        ]
        lines(folder / f"coco_pope_{split}.json", *asked)
        answers = [{"question_id": i, "text": text} for i, (text, _) in enumerate(said)]
        lines(folder / f"answers_{split}.jsonl", *answers)


def chair(folder: Path) -> None:
    """Write truth.jsonl, synonyms.txt and captions.json."""
    lines(
        folder / "truth.jsonl",
        {"image": "COCO_val2014_000000000042.jpg", "objects": ["dog", "cup"]},
        {"image": "COCO_val2014_000000000073.jpg", "objects": ["cat"]},
    )
    (folder / "synonyms.txt").write_text("dog, puppy\ncat\ncup\n")
    captions = [{"image_id": 73, "caption": "A cat."}, {"image_id": 42, "caption": "A puppy and a cat."}]
    (folder / "captions.json").write_text(json.dumps(captions))


def amber(folder: Path) -> None:
    """Write amber/, in the form of the benchmark's own ``data``, and amber_answers.json."""
    data = folder / "amber"
    (data / "query").mkdir(parents=True)
    query = [
        {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
        {"id": 2, "image": "AMBER_1.jpg", "query": "Is there a dog in this image?"},
        {"id": 3, "image": "AMBER_1.jpg", "query": "Is there a cat in this image?"},
    ]
    annotations = [
        {"id": 1, "type": "generative", "truth": ["dog", "ball"], "hallu": ["cat"]},
        {"id": 2, "type": "discriminative-hallucination", "truth": "yes"},
        {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    ]
    (data / "query" / "query_all.json").write_text(json.dumps(query, indent=1))
    (data / "annotations.json").write_text(json.dumps(annotations, indent=1))
    (data / "relation.json").write_text(json.dumps({"dog": ["puppy"], "cat": [], "ball": []}))
    (data / "safe_words.txt").write_text("image\n")
    said = [(1, "A dog and a cat."), (2, "Yes"), (3, "Yes")]
    (folder / "amber_answers.json").write_text(json.dumps([{"id": i, "response": text} for i, text in said]))


def mme(folder: Path) -> None:
    """Write mme/existence.txt with two images, and said/existence.txt with answers, one of the four of them wrong."""
    rows = [
        f"{image}.jpg\tIs there a {thing}?\t{key}" for image in "ab" for thing, key in (("cat", "Yes"), ("cow", "No"))
    ]
    for name, said in (("mme", ["", "", "", ""]), ("said", ["\tYes", "\tno, none", "\tI cannot say", "\tNo"])):
        (folder / name).mkdir()
        lines = [row + end for row, end in zip(rows, said, strict=True)]
        (folder / name / "existence.txt").write_text("\n".join(lines) + "\n")


def mmhal(folder: Path) -> None:
    """Write template.json with two questions; filled.json, the same with answers; official.json, the script's output.

    The official script's judge rated them 6 and 2.
    """
    rows = [
        {
            "question_type": kind,
            "question_topic": "food",
            "image_id": name,
            "image_src": f"https://example.org/{name}.jpg",
            "image_content": ["Apple", "Table"],
            "question": f"What is {name}?",
            "gt_answer": "An apple.",
            "model_answer": "",
        }
        for kind, name in (("attribute", "3fa"), ("counting", "0b1"))
    ]
    (folder / "template.json").write_text(json.dumps(rows))
    (folder / "filled.json").write_text(
        json.dumps([row | {"model_answer": f"It is {row['image_id']}."} for row in rows])
    )
    judged = [
        {"model": "gpt-4-0314", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
        for text in ("Good.\nRating: 6", "An apple that is not there.\nRating: 2")
    ]
    (folder / "official.json").write_text(json.dumps(judged))
