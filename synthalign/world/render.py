"""From a scene to its picture: icons on a tinted, noisy ground, 48 x 48 pixels.

An icon is a list of strokes on a 64 x 64 board, scaled down to one cell with its edges smoothed: the body takes the
object's color, the detail is white.
"""

from functools import cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from synthalign.world.scenes import Scene

SIZE = 48  # pixels, width and height
CELL = SIZE // 3
BOARD = 64
NOISE = 6.0  # standard deviation, grey levels of 255

GROUND = {"kitchen": (250, 230, 200), "road": (203, 206, 214), "garden": (203, 238, 198), "study": (222, 212, 242)}
PAINT = {
    "red": (215, 35, 35),
    "green": (25, 145, 50),
    "blue": (35, 70, 220),
    "yellow": (240, 200, 20),
    "purple": (150, 45, 180),
    "black": (25, 25, 25),
}
WHITE = 250.0

Stroke = tuple[str, str, tuple[int, ...], int]  # layer, shape, coordinates, line width (0: filled)


def _body(shape: str, *at: int, width: int = 0) -> Stroke:
    return "body", shape, at, width


def _white(shape: str, *at: int, width: int = 0) -> Stroke:
    return "detail", shape, at, width


ICONS: dict[str, tuple[Stroke, ...]] = {
    "cup": (_body("box", 8, 16, 42, 58), _body("oval", 32, 24, 60, 48, width=7)),
    "fork": (
        *(_body("box", x, 2, x + 8, 30) for x in (12, 28, 44)),
        _body("box", 12, 24, 52, 33),
        _body("box", 28, 30, 36, 62),
    ),
    "pan": (_body("oval", 2, 20, 44, 62), _body("line", 38, 26, 61, 3, width=9)),
    "plate": (_body("oval", 2, 10, 62, 54), _white("oval", 16, 20, 48, 44)),
    "knife": (_body("shape", 22, 2, 40, 16, 40, 40, 22, 40), _body("box", 26, 44, 38, 62)),
    "car": (
        _body("box", 3, 28, 61, 48),
        _body("shape", 14, 28, 22, 11, 43, 11, 52, 28),
        _white("oval", 9, 40, 24, 55),
        _white("oval", 40, 40, 55, 55),
    ),
    "bus": (_body("box", 3, 8, 61, 57), *(_white("box", x, 14, x + 11, 29) for x in (9, 26, 43))),
    "sign": (
        _body("shape", 23, 1, 41, 1, 53, 12, 53, 29, 41, 40, 23, 40, 11, 29, 11, 12),
        _body("box", 29, 40, 35, 62),
        _white("box", 18, 17, 46, 24),
    ),
    "lamp": (_body("box", 19, 1, 45, 63), *(_white("oval", 25, y, 39, y + 14) for y in (5, 25, 45))),
    "cone": (_body("shape", 32, 1, 57, 61, 7, 61), _white("box", 12, 35, 52, 43)),
    "tree": (_body("shape", 32, 1, 59, 32, 5, 32), _body("shape", 32, 12, 63, 51, 1, 51), _body("box", 26, 51, 38, 63)),
    "flower": (
        *(_body("oval", x - 11, y - 11, x + 11, y + 11) for x, y in ((32, 13), (13, 27), (51, 27), (20, 48), (44, 48))),
        _white("oval", 22, 22, 42, 42),
    ),
    "bird": (_body("shape", 1, 13, 32, 32, 63, 13, 41, 51, 23, 51), _body("oval", 23, 19, 41, 37)),
    "bench": (
        _body("box", 3, 6, 61, 14),
        _body("box", 3, 26, 61, 36),
        _body("box", 8, 36, 16, 62),
        _body("box", 48, 36, 56, 62),
    ),
    "fence": (
        *(_body("shape", x, 13, x + 8, 2, x + 16, 13, x + 16, 62, x, 62) for x in (2, 24, 46)),
        _body("box", 0, 28, 63, 37),
    ),
    "book": (_body("box", 9, 5, 55, 59), _white("box", 28, 5, 33, 59)),
    "screen": (_body("box", 3, 7, 61, 47), _white("box", 11, 15, 53, 39), _body("box", 20, 47, 44, 60)),
    "pen": (_body("line", 9, 55, 54, 10, width=13),),
    "clock": (
        _body("oval", 3, 3, 61, 61),
        _white("line", 32, 34, 32, 12, width=7),
        _white("line", 30, 32, 49, 32, width=7),
    ),
    "key": (
        _body("oval", 1, 19, 29, 47, width=8),
        _body("box", 26, 29, 62, 37),
        _body("box", 44, 36, 51, 49),
        _body("box", 55, 36, 62, 49),
    ),
}


@cache
def icon(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the opacity of an icon's body and of its detail, each (CELL, CELL, 1) in 0..1."""
    boards = {layer: Image.new("L", (BOARD, BOARD)) for layer in ("body", "detail")}
    for layer, shape, at, width in ICONS[kind]:
        draw = ImageDraw.Draw(boards[layer])
        if shape == "box":
            draw.rectangle(at, fill=255)
        elif shape == "shape":
            draw.polygon(at, fill=255)
        elif shape == "line":
            draw.line(at, fill=255, width=width)
        else:
            draw.ellipse(at, fill=None if width else 255, outline=255, width=width)
    body, detail = (
        np.asarray(board.resize((CELL, CELL), Image.Resampling.BOX), np.float32)[..., None] / 255
        for board in boards.values()
    )
    return body, detail


def render(seen: Scene, rng: Random) -> Image.Image:
    """Draw a scene as an RGB picture; ``rng`` moves each icon by at most a pixel and sprinkles the noise."""
    canvas = np.empty((SIZE, SIZE, 3), np.float32)
    canvas[:] = GROUND[seen.theme]
    for item in seen.items:
        row, column = divmod(item.cell, 3)
        top, left = (min(max(0, CELL * n + rng.randint(-1, 1)), SIZE - CELL) for n in (row, column))
        patch = canvas[top : top + CELL, left : left + CELL]
        body, detail = icon(item.kind)
        patch += body * (np.asarray(PAINT[item.color], np.float32) - patch)
        patch += detail * (WHITE - patch)
    canvas += np.random.default_rng(rng.getrandbits(64)).normal(0, NOISE, canvas.shape)
    return Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))
