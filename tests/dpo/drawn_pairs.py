"""Preference pairs about drawings, in the Synth-Align authors' format: a JSON file and a folder of images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw


class Pair(NamedTuple):
    """One question about one drawing and two answers to it."""

    id: str
    drawing: str  # "<colour> <shape> on <colour>"
    question: str
    chosen: str
    rejected: str


# Ten pairs on nine drawings. Two rejected answers are the faults that the authors' own set has.
EMPTY, FOREIGN = "home-4", "home-7"
TEN = [
    Pair("home-1", "red circle on white", "What colour is the circle?", "It is red.", "The circle is blue."),
    Pair("home-2", "green square on black", "Describe the image in detail.", "A green square.", "Two dogs on a chair."),
    Pair("home-3", "blue circle on white", "Is there a square in the image?", "No.", "Yes, there is a square."),
    Pair(EMPTY, "red square on grey", "How many squares are there?", "There is one square.", " "),
    Pair("home-5", "red square on grey", "What is this?", "A red square on grey ground.", "I do not know."),
    Pair("home-6", "white circle on red", "Is there a circle? Please answer yes or no.", "Yes", "No"),
    Pair(FOREIGN, "green circle on blue", "What shape is it?", "It is a circle.", "这是一个正方形。"),
    Pair("home-8", "black square on green", "Describe it.", "There is a black square.", "It shows a cup and a table."),
    Pair("home-9", "blue square on red", "Which colours are there?", "Blue and red.", "Green and green and green."),
    Pair("home-10", "grey circle on black", "Is the circle grey?", "Yes, it is grey.", "No, the circle is white."),
]
FIT = [pair for pair in TEN if pair.id not in (EMPTY, FOREIGN)]
FOUR = [TEN[0], TEN[1], TEN[2], TEN[9]]  # of different lengths; now the chosen answer is the longer, now the other


def draw(text: str, size: tuple[int, int] = (48, 36)) -> Image.Image:
    """Draw "<colour> <shape> on <colour>"."""
    colour, shape, _, ground = text.split()
    image = Image.new("RGB", size, ground)
    pen = ImageDraw.Draw(image)
    box = (size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4)
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=colour)
    return image


def write_set(folder: Path, pairs: Sequence[Pair] = TEN) -> Path:
    """Write the pairs as ``pairs.json``, their drawings into ``images``, and return the JSON file."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for pair in pairs:
        name = f"images/{pair.drawing.replace(' ', '-')}.png"
        draw(pair.drawing).save(folder / name)
        asked = {"from": "human", "value": f"<image> {pair.question}"}
        sides = {"conversations": pair.chosen, "rejected_conversations": pair.rejected}
        said = {key: [asked, {"from": "gpt", "value": answer}] for key, answer in sides.items()}
        rows.append({"id": pair.id, "image": name, **said})
    path = folder / "pairs.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return path
