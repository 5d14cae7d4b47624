"""Make amber_golden.json: a small made-up benchmark in AMBER's form, and what AMBER's script says of made-up answers.

    python tests/evals/make_amber_golden.py CHECKOUT

CHECKOUT is junyangwang0410/AMBER at 534babf. Needs nltk and its data (punkt_tab, averaged_perceptron_tagger_eng,
wordnet); spaCy is replaced by a module for which words are similar if they are equal.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

GOLDEN = Path(__file__).with_name("amber_golden.json")
IMAGES = 10
SEED = 11

STAND_IN = """
class Word:
    def __init__(self, text):
        self.text = text

    def similarity(self, other):
        return float(self.text == other.text)


def load(name):
    return Word
"""

RELATED = {
    "person": ["people", "woman", "child"],
    "woman": ["person", "girl"],
    "child": ["person", "kid"],
    "dog": [],
    "bird": ["pigeon"],
    "tree": ["forest", "bush"],
    "forest": ["tree"],
    "lake": ["water"],
    "car": ["tire", "light"],
    "light": [],
    "knife": [],
    "cup": ["mug"],
    "table": ["desk"],
    "box": [],
}
SAFE = ["light", "sign"]
KINDS = {
    "discriminative-hallucination": ("no",),
    "discriminative-attribute-state": ("yes", "no"),
    "discriminative-attribute-number": ("yes", "no"),
    "discriminative-attribute-action": ("yes", "no"),
    "discriminative-relation": ("yes",),
    "relation": ("no",),
}
PLURALS = {"person": "persons", "woman": "women", "child": "children", "knife": "knives", "box": "boxes"}
SENTENCES = ("There is a {}.", "The {} is in the middle.", "Two {s} are near a {}.", "We see a red {} and the {}.")
REPLIES = ("Yes", "Yes", "Yes", "No", "No", "No", "yes", "No.", "")
SECTIONS = {
    "Generative Task": "generative",
    "Descriminative Task": "discriminative",
    "Exsitence": "existence",
    "Attribute": "attribute",
    "State": "state",
    "Number": "number",
    "Action": "action",
    "Relation": "relation",
}


def benchmark(draw: random.Random) -> tuple[list[dict], list[dict]]:
    """Return annotations and queries: the descriptions of all images first, as the original wants it."""
    annotations, queries = [], []
    for image in range(1, IMAGES + 1):
        names = draw.sample(sorted(RELATED), 6)
        truth = names[: draw.randint(1, 4)] + draw.choices(names[:1], k=draw.randint(0, 1))
        annotations.append({"id": image, "type": "generative", "truth": truth, "hallu": names[4:]})
        queries.append({"id": image, "image": f"AMBER_{image}.jpg", "query": "Describe this image."})
    for kind, truths in KINDS.items():
        for image in range(1, IMAGES + 1):
            number = len(annotations) + 1
            annotations.append({"id": number, "type": kind, "truth": draw.choice(truths)})
            queries.append({"id": number, "image": f"AMBER_{image}.jpg", "query": f"Is question {number} right?"})
    return annotations, queries


def description(draw: random.Random, annotation: dict) -> str:
    words = [word for name in annotation["truth"] + annotation["hallu"] for word in [name, *RELATED[name]]] + SAFE
    sentences = draw.choices(SENTENCES, k=draw.randint(0, 4))

    def word(gap: re.Match[str]) -> str:
        name = draw.choice(words)
        return PLURALS.get(name, name + "s") if gap[0] == "{s}" and name not in ("people", "water") else name

    return " ".join(re.sub(r"\{s?\}", word, sentence) for sentence in sentences)


def printed(checkout: Path, files: Mapping[str, object]) -> dict[str, float]:
    """Run the original and read what it prints."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "spacy.py").write_text(STAND_IN)
        (folder / "safe.txt").write_text("\n".join(SAFE))
        for file, content in files.items():
            (folder / file).write_text(json.dumps(content))
        paths = {
            "--word_association": folder / "relation.json",
            "--safe_words": folder / "safe.txt",
            "--annotation": folder / "annotations.json",
            "--metrics": checkout / "data" / "metrics.txt",
            "--inference_data": folder / "answers.json",
        }
        options = [str(part) for option in paths.items() for part in option]
        run = subprocess.run(
            [sys.executable, str(checkout / "inference.py"), "--evaluation_type", "a", *options],
            env={**os.environ, "PYTHONPATH": name},
            check=True,
            capture_output=True,
            text=True,
        )
    figures, section = {}, ""
    for line in run.stdout.splitlines():
        if found := re.match(r"(\w[\w ]*):\s*([\d.]*)", line):
            if found[2]:
                figures[f"{section}/{found[1].lower()}"] = float(found[2])
            else:
                section = SECTIONS[found[1]]
    return figures


def main(checkout: Path) -> None:
    """Write the benchmark, two sets of answers and the original's figures."""
    draw = random.Random(SEED)
    annotations, queries = benchmark(draw)
    runs = []
    for _ in range(2):
        answers = [
            {
                "id": one["id"],
                "response": description(draw, one) if one["type"] == "generative" else draw.choice(REPLIES),
            }
            for one in annotations
        ]
        files = {"relation.json": RELATED, "annotations.json": annotations, "answers.json": answers}
        runs.append({"answers": answers, "printed": printed(checkout, files)})
    golden = {
        "source": "junyangwang0410/AMBER at 534babf, inference.py; equality for spaCy's similarity",
        "relation": RELATED,
        "safe_words": SAFE,
        "annotations": annotations,
        "queries": queries,
        "runs": runs,
    }
    rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    GOLDEN.write_text("{\n" + rows + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
