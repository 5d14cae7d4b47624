"""Scenes: what can stand in one, how one is drawn from a seed, and how a careless painter spoils one.

A scene is a place (its theme) seen through a grid of 3 x 3 cells, with at most one object of each kind. Objects keep
company: most of those in a kitchen are kitchen things, and some kitchen things are far more common than others. A model
that learns from such scenes learns to expect company that is not there, which is how hallucination comes about.
"""

from collections.abc import Iterable
from random import Random
from typing import NamedTuple

THEMES: dict[str, tuple[str, ...]] = {
    "kitchen": ("cup", "fork", "pan", "plate", "knife"),
    "road": ("car", "bus", "sign", "lamp", "cone"),
    "garden": ("tree", "flower", "bird", "bench", "fence"),
    "study": ("book", "screen", "pen", "clock", "key"),
}
OBJECTS: tuple[str, ...] = tuple(kind for kinds in THEMES.values() for kind in kinds)
POPULARITY: tuple[float, ...] = (0.34, 0.26, 0.18, 0.13, 0.09)  # of a theme's kinds, in the order they are listed
COLORS: tuple[str, ...] = ("red", "green", "blue", "yellow", "purple", "black")
PLACES: tuple[str, ...] = (
    "top-left", "top", "top-right",
    "left", "center", "right",
    "bottom-left", "bottom", "bottom-right",
)  # fmt: skip
FEWEST, MOST = 2, 5  # objects in a scene

BIASED = 0.85  # how often an object is drawn from its scene's theme: the world the models grow up in
HALF = 0.55  # the world of prompts and tests, in which habit is a worse guide
OPEN = 0.3  # the broad world, for learning to see


class Item(NamedTuple):
    """One object: its kind, its color, and its cell (0 to 8, row by row from the top left)."""

    kind: str
    color: str
    cell: int


class Scene(NamedTuple):
    """A theme and its items in the order of their cells. Build one by `scene`, which keeps the order."""

    theme: str
    items: tuple[Item, ...]

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of object present."""
        return frozenset(item.kind for item in self.items)

    @property
    def free(self) -> list[int]:
        """The empty cells, ascending."""
        return sorted(set(range(len(PLACES))) - {item.cell for item in self.items})

    def find(self, kind: str) -> Item | None:
        """Return the item of this kind, if it is here."""
        return next((item for item in self.items if item.kind == kind), None)

    def at(self, cell: int) -> Item | None:
        """Return the item in this cell, if there is one."""
        return next((item for item in self.items if item.cell == cell), None)

    def missing(self) -> list[str]:
        """Return the theme's own kinds that are not here, the most popular first."""
        return [kind for kind in THEMES[self.theme] if kind not in self.kinds]

    def strangers(self) -> list[str]:
        """Return the kinds of other themes that are not here."""
        return [kind for kind in OBJECTS if kind not in self.kinds and kind not in THEMES[self.theme]]


def scene(theme: str, items: Iterable[Item]) -> Scene:
    """Build a scene, its items put in the order of their cells."""
    return Scene(theme, tuple(sorted(items, key=lambda item: item.cell)))


def sample(rng: Random, in_theme: float) -> Scene:
    """Draw a scene.

    Args:
        rng: source of all randomness.
        in_theme: probability, below 1, that an object is drawn from the theme by popularity instead of from all kinds
            evenly.
    """
    theme = rng.choice(tuple(THEMES))
    kinds: list[str] = []
    number = rng.randint(FEWEST, MOST)
    while len(kinds) < number:
        kind = rng.choices(THEMES[theme], POPULARITY)[0] if rng.random() < in_theme else rng.choice(OBJECTS)
        if kind not in kinds:
            kinds.append(kind)
    cells = rng.sample(range(len(PLACES)), number)
    return scene(theme, (Item(kind, rng.choice(COLORS), cell) for kind, cell in zip(kinds, cells, strict=True)))


def imagine(seen: Scene, rng: Random) -> Item | None:
    """Invent an object that would fit the theme but is not there, mostly a popular one; None if all are there."""
    kinds = seen.missing()
    if not kinds:
        return None
    weights = [POPULARITY[THEMES[seen.theme].index(kind)] ** 2 for kind in kinds]
    return Item(rng.choices(kinds, weights)[0], rng.choice(COLORS), rng.choice(seen.free))


def spoil(meant: Scene, rng: Random, level: float) -> Scene:
    """Make the mistakes of a text-to-image model: each object, with probability ``level``, comes out wrong.

    A wrong object is left out (1 in 5), replaced by another kind, mostly one typical of the theme (2 in 5), recolored
    (1 in 5) or moved (1 in 5). The last object of a scene that is about to become empty is replaced, not left out.
    """
    kinds, free = set(meant.kinds), meant.free
    items: list[Item] = []
    for nth, item in enumerate(meant.items):
        how = rng.choice(("drop", "replace", "replace", "recolor", "move")) if rng.random() < level else "keep"
        if how == "drop" and not items and nth + 1 == len(meant.items):
            how = "replace"
        if how == "drop":
            continue
        if how == "replace":
            absent = [kind for kind in OBJECTS if kind not in kinds]
            typical = [kind for kind in absent if kind in THEMES[meant.theme]]
            item = item._replace(kind=rng.choice(typical if typical and rng.random() < 0.7 else absent))
            kinds.add(item.kind)
        elif how == "recolor":
            item = item._replace(color=rng.choice([color for color in COLORS if color != item.color]))
        elif how == "move":
            item = item._replace(cell=free.pop(rng.randrange(len(free))))
        items.append(item)
    return scene(meant.theme, items)


def mistakes(meant: Scene, drawn: Scene) -> float:
    """Count the objects that differ: one that is wrong in any way counts 1, one left out or added 1/2."""
    return len(set(meant.items) ^ set(drawn.items)) / 2
