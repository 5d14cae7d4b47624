"""Questions about a scene and their true answers.

``ask_*`` puts a question, ``say_*`` words an answer whether it is true or not, `answer` gives the true one.
"""

import re
from collections.abc import Callable
from random import Random

from synthalign.world.language import describe
from synthalign.world.scenes import PLACES, Item, Scene

DESCRIBE = ("Describe the image.", "What is in the image?", "Please describe the scene in detail.")
COUNT = "How many objects are in the image?"
THEME = "What kind of place is this?"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def ask_presence(kind: str) -> str:
    """Ask as POPE does."""
    return f"Is there a {kind} in the image?"


def ask_color(kind: str) -> str:
    """Ask for the color of an object."""
    return f"What color is the {kind}?"


def ask_place(kind: str) -> str:
    """Ask where an object is."""
    return f"Where is the {kind}?"


def ask_object(cell: int) -> str:
    """Ask what is in a cell."""
    return f"What object is at the {PLACES[cell]}?"


def ask_same_color(one: str, other: str) -> str:
    """Ask whether two objects have one color."""
    return f"Do the {one} and the {other} have the same color?"


def ask_above(one: str, other: str) -> str:
    """Ask whether one object is in a higher row than another."""
    return f"Is the {one} above the {other}?"


def say_presence(kind: str, there: bool) -> str:
    """Answer `ask_presence`."""
    return f"Yes, there is a {kind}." if there else f"No, there is no {kind}."


def say_color(kind: str, color: str | None) -> str:
    """Answer `ask_color`; None says that there is no such object."""
    return f"The {kind} is {color}." if color else f"There is no {kind}."


def say_place(kind: str, cell: int | None) -> str:
    """Answer `ask_place`; None says that there is no such object."""
    return f"There is no {kind}." if cell is None else f"The {kind} is at the {PLACES[cell]}."


def say_object(item: Item | None) -> str:
    """Answer `ask_object`."""
    return f"There is a {item.color} {item.kind} there." if item else "There is nothing there."


def say_count(number: int) -> str:
    """Answer `COUNT`."""
    return f"There are {NUMBERS[number]} objects." if number != 1 else "There is one object."


def say_theme(theme: str) -> str:
    """Answer `THEME`."""
    return f"This is a {theme}."


def say_same_color(same: bool) -> str:
    """Answer `ask_same_color`."""
    return "Yes, they have the same color." if same else "No, they have different colors."


def say_above(one: str, other: str, above: bool) -> str:
    """Answer `ask_above`."""
    return f"Yes, the {one} is above the {other}." if above else f"No, the {one} is not above the {other}."


def _color(seen: Scene, kind: str) -> str:
    item = seen.find(kind)
    return say_color(kind, item.color if item else None)


def _place(seen: Scene, kind: str) -> str:
    item = seen.find(kind)
    return say_place(kind, item.cell if item else None)


def _same(seen: Scene, one: str, other: str) -> str:
    a, b = seen.find(one), seen.find(other)
    return say_same_color(a.color == b.color) if a and b else f"There is no {other if a else one}."


def _above(seen: Scene, one: str, other: str) -> str:
    a, b = seen.find(one), seen.find(other)
    return say_above(one, other, a.cell // 3 < b.cell // 3) if a and b else f"There is no {other if a else one}."


_FORMS: tuple[tuple[re.Pattern[str], Callable[..., str]], ...] = (
    (re.compile("|".join(map(re.escape, DESCRIBE))), describe),
    (re.compile(r"Is there an? (\w+) in the image\?"), lambda seen, kind: say_presence(kind, kind in seen.kinds)),
    (re.compile(r"What color is the (\w+)\?"), _color),
    (re.compile(r"Where is the (\w+)\?"), _place),
    (
        re.compile(r"What object is at the ([\w-]+)\?"),
        lambda seen, place: say_object(seen.at(PLACES.index(place)) if place in PLACES else None),
    ),
    (re.compile(re.escape(COUNT)), lambda seen: say_count(len(seen.items))),
    (re.compile(re.escape(THEME)), lambda seen: say_theme(seen.theme)),
    (re.compile(r"Do the (\w+) and the (\w+) have the same color\?"), _same),
    (re.compile(r"Is the (\w+) above the (\w+)\?"), _above),
)


def answer(seen: Scene, question: str) -> str:
    """Answer a question truly.

    Raises:
        ValueError: if it is none of the world's questions.
    """
    for pattern, form in _FORMS:
        if match := pattern.fullmatch(question):
            return form(seen, *match.groups())
    raise ValueError(f"the offline world knows no question like {question!r}: ask one of synthalign.world.questions")


def draw_question(meant: Scene, rng: Random, *, describing: float = 0.35, presence: float = 0.45) -> str:
    """Draw a question that someone who knows only the drawing prompt would ask of its image.

    Args:
        meant: the scene of the drawing prompt.
        rng: source of all randomness.
        describing: share of requests for a description.
        presence: share of yes/no questions, 2 in 5 of them about an object that is meant to be there and most others
            about one that the theme suggests. The rest are open questions.
    """
    kind = rng.random()
    if kind < describing:
        return rng.choice(DESCRIBE)
    missing, item = meant.missing(), rng.choice(meant.items)
    absent = rng.choice(missing if missing and rng.random() < 0.7 else meant.strangers())
    if kind < describing + presence:
        return ask_presence(item.kind if rng.random() < 0.4 else absent)
    about = item.kind if rng.random() < 0.5 else absent
    anywhere = rng.randrange(len(PLACES))
    return rng.choice((ask_color(about), ask_place(about), ask_object(anywhere), ask_object(item.cell), COUNT))
