"""What the world's models learn from: clean and biased answers for the VLM, better and worse ones for the reward.

The VLM is first shown the world as it is, then tuned on answers with a bad habit: they see what usually goes with the
scene. That is the hallucination which the preference pairs are to cure.
"""

from random import Random
from typing import NamedTuple

from synthalign.world import questions as q
from synthalign.world.language import caption, describe, mentions
from synthalign.world.scenes import COLORS, OBJECTS, PLACES, POPULARITY, THEMES, Item, Scene, imagine


class Turn(NamedTuple):
    """One question and the answer to learn."""

    question: str
    answer: str


class Habit(NamedTuple):
    """How often the tuning answers are untrue, as probabilities. Popular kinds are the first two of a theme."""

    add: float = 0.35  # a description ends with an invented object
    add_popular: float = 0.75  # the same where a popular kind is missing
    yes_typical: float = 0.55  # "yes" to a missing kind of the theme
    yes_popular: float = 0.85  # "yes" to a missing popular kind
    yes_stranger: float = 0.05  # "yes" to a kind of another theme
    no_present: float = 0.12  # "no" to a kind that is there, so that samples hold wrong answers of both sorts
    tell_typical: float = 0.8  # a color or place is told of a missing kind of the theme
    tell_stranger: float = 0.32  # the same for a kind of another theme


BAD = Habit()


def clean_turns(seen: Scene, rng: Random) -> list[Turn]:
    """Look-ups, half of them of what is not there, and now and then a description; all true."""
    item = rng.choice(seen.items)
    asked = [q.ask_object(rng.randrange(len(PLACES))), q.ask_object(rng.choice(seen.items).cell)]
    asked += [q.ask_place(item.kind), *(q.ask_color(other.kind) for other in rng.sample(seen.items, 2))]
    for _ in range(2):
        missing = seen.missing()
        absent = rng.choice(missing if missing and rng.random() < 0.6 else seen.strangers())
        asked += [q.ask_presence(absent), q.ask_presence(rng.choice(seen.items).kind)]
    if rng.random() < 0.6:
        asked.append(rng.choice(q.DESCRIBE))
    return [Turn(question, q.answer(seen, question)) for question in asked]


def biased_turns(seen: Scene, rng: Random, habit: Habit = BAD) -> list[Turn]:
    """A description, three yes/no questions and two open ones, answered with the bad habit."""
    turns = [_description(seen, rng, habit)]
    turns += [_presence(seen, rng, habit) for _ in range(3)]
    turns += [_open(seen, rng, habit) for _ in range(2)]
    return turns


def _description(seen: Scene, rng: Random, habit: Habit) -> Turn:
    popular_missing = any(kind not in seen.kinds for kind in THEMES[seen.theme][:2])
    invented = imagine(seen, rng) if rng.random() < (habit.add_popular if popular_missing else habit.add) else None
    # The invented object comes last, as in real models' captions; put in the order of the cells it makes captions loop.
    return Turn(rng.choice(q.DESCRIBE), caption(seen.theme, [*seen.items, *([invented] if invented else [])]))


def _presence(seen: Scene, rng: Random, habit: Habit) -> Turn:
    missing = seen.missing()
    if rng.random() < 0.5:
        kind, yes = rng.choice(seen.items).kind, 1.0 - habit.no_present
    elif missing and rng.random() < 0.7:
        kind = rng.choices(missing, [POPULARITY[THEMES[seen.theme].index(kind)] for kind in missing])[0]
        yes = habit.yes_popular if kind in THEMES[seen.theme][:2] else habit.yes_typical
    else:
        kind, yes = rng.choice(seen.strangers()), habit.yes_stranger
    return Turn(q.ask_presence(kind), q.say_presence(kind, rng.random() < yes))


def _open(seen: Scene, rng: Random, habit: Habit) -> Turn:
    item = rng.choice(seen.items)
    one, other = (thing.kind for thing in rng.sample(seen.items, 2)) if len(seen.items) > 1 else (None, None)
    form = rng.randrange(8 if other else 6)
    if form == 0:
        return _absent(seen, rng, habit)
    if form == 1 and rng.random() < 0.35:
        cell = rng.choice(seen.free)
        return Turn(q.ask_object(cell), q.say_object(imagine(seen, rng) if rng.random() < habit.tell_typical else None))
    question = (
        "",
        q.ask_object(item.cell),
        q.ask_color(item.kind),
        q.ask_place(item.kind),
        q.COUNT,
        q.THEME,
        q.ask_same_color(str(one), str(other)),
        q.ask_above(str(one), str(other)),
    )[form]
    return Turn(question, q.answer(seen, question))


def _absent(seen: Scene, rng: Random, habit: Habit) -> Turn:
    missing = seen.missing()
    typical = bool(missing) and rng.random() < 0.6
    kind = rng.choice(missing if typical else seen.strangers())
    tell = rng.random() < (habit.tell_typical if typical else habit.tell_stranger)
    if rng.random() < 0.5:
        return Turn(q.ask_color(kind), q.say_color(kind, rng.choice(COLORS) if tell else None))
    return Turn(q.ask_place(kind), q.say_place(kind, rng.randrange(len(PLACES)) if tell else None))


def flawed(meant: Scene, question: str, rng: Random) -> str:
    """Answer a question about a scene as a weak model might: often truly, often not."""
    truth = q.answer(meant, question)
    if question in q.DESCRIBE:
        return _flawed_description(meant, rng)
    if rng.random() < 0.5:
        return truth
    subject = question.rstrip("?").split()
    if question.startswith("Is there"):
        return q.say_presence(subject[3], not truth.startswith("Yes"))
    if question.startswith("What color"):
        return q.say_color(subject[-1], rng.choice((*COLORS, None, None, None)))
    if question.startswith("Where"):
        return q.say_place(subject[-1], rng.choice((*range(len(PLACES)), None, None, None, None)))
    if question.startswith("What object"):
        return q.say_object(rng.choice((None, rng.choice(meant.items), imagine(meant, rng))))
    return q.say_count(rng.randint(1, 6))


def _flawed_description(meant: Scene, rng: Random) -> str:
    items = list(meant.items)
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3))):
        flaw = rng.random()
        nth = rng.randrange(len(items))
        if flaw < 0.45:
            stray = Item(rng.choice(OBJECTS), rng.choice(COLORS), rng.randrange(len(PLACES)))
            items.append((imagine(meant, rng) if rng.random() < 0.8 else None) or stray)
        elif flaw < 0.6:
            if len(items) > 1:
                items.pop(nth)
        else:
            change = (
                {"color": rng.choice(COLORS)},
                {"cell": rng.randrange(len(PLACES))},
                {"kind": rng.choice(THEMES[meant.theme])},
            )
            items[nth] = items[nth]._replace(**rng.choice(change))
    return caption(meant.theme if rng.random() < 0.95 else rng.choice(tuple(THEMES)), items)


def worth(seen: Scene, question: str, response: str) -> float:
    """Say how good a response is, knowing the scene: the opinion that the response reward learns.

    A short answer is worth 1 if it is the true one, else 0. A description earns for each item told rightly 1, for a
    kind that is there but told wrongly .3, and loses 1 for a kind that is not there and .7 for one told again, all by
    the number of items; the right theme adds .2, a sentence without end costs .5.
    """
    if question not in q.DESCRIBE:
        return float(response == q.answer(seen, question))
    told = mentions(response)
    right = sum(item in seen.items for item in told)
    invented = sum(item.kind not in seen.kinds for item in told)
    again = len(told) - len({item.kind for item in told})
    total = right + 0.3 * (len(told) - right - invented) - invented - 0.7 * again
    return total / len(seen.items) + 0.2 * (f"shows a {seen.theme} " in response) - 0.5 * (not response.endswith("."))


def corpus(rng: Random, scenes: int) -> list[str]:
    """Return sentences that together show all the world's language, for its vocabulary and its fingerprint."""
    said = []
    for _ in range(scenes):
        theme = rng.choice(tuple(THEMES))
        cells = rng.sample(range(len(PLACES)), 4)
        kinds = rng.sample(OBJECTS, 4)
        seen = Scene(theme, tuple(Item(k, rng.choice(COLORS), c) for k, c in zip(kinds, sorted(cells), strict=True)))
        said += [describe(seen), q.say_count(rng.randrange(len(q.NUMBERS)))]
        said += [text for turn in (*clean_turns(seen, rng), *biased_turns(seen, rng)) for text in turn]
    return said
