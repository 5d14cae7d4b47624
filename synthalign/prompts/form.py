"""What a language model is asked for, one scene with its questions a call, and how strictly its reply is read."""

import re
from typing import NamedTuple

from synthalign.store import seed_of
from synthalign.types import Drop, Reply

# The fifteen categories of the paper's released pairs (arXiv 2412.17417); what each covers is ours to say.
CATEGORIES = {
    "art": "art and those who make it: studios, galleries, murals, sculpture, instruments and stages",
    "industrial": "industry and crafts: factories, workshops, docks, mines, warehouses, building sites",
    "nature": "landscapes: mountains, rivers, coasts, forests, deserts, skies and weather over them",
    "transport": "transport: cars, trains, bicycles, boats and aircraft, and the roads, stations and ports they use",
    "urban": "cities: streets, squares, markets, shops, parks, roofs and the people in them",
    "school": "places of learning: classrooms, libraries, laboratories, playgrounds, lectures",
    "holiday": "holidays and festivals: beaches, hotels, camping, parades, family celebrations",
    "weather": "weather that shapes a place: storms, snow, fog, floods, heat, wind, rainbows",
    "daily": "everyday life: errands, chores, waiting, hobbies, neighbours, mornings and evenings",
    "culinary": "food and drink: kitchens, dishes, ingredients, bakeries, restaurants, market stalls",
    "home": "homes: rooms, furniture, balconies, gardens, garages and what lies about in them",
    "scifi": "science fiction: spacecraft, robots, other planets, future cities, strange machines",
    "animal": "animals: pets, farm animals, wild animals, birds, insects, life under water",
    "plant": "plants: flowers, trees, vegetables, greenhouses, gardens, fields, moss and fungi",
    "fashion": "clothes and those who wear or make them: outfits, shoes, jewellery, tailors, shops, shows",
}

# What makes one call differ from the next: a model that is left alone writes the same few scenes again and again.
VIEWS = (
    "seen from close up",
    "seen from a few steps away",
    "seen from above",
    "seen from low down",
    "seen from afar, with much of the surroundings",
    "seen through a window or a doorway",
)
LIGHTS = (
    "in early morning light",
    "in bright midday light",
    "in low evening light",
    "at night, under lamps",
    "under a grey sky",
    "in soft indoor light",
)
COUNTS = ("a single main thing", "exactly two of one thing", "exactly three of one thing", "four or five of one thing")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "turquoise")
KINDS = (
    "asks to describe the picture",
    "asks whether something is in the picture, and is answered by yes or no",
    "asks how many there are of something",
    "asks for the colour of something",
    "asks where something is, or what is beside, behind or under it",
    "asks what somebody or something is doing, or what it is made of",
)

MIN_WORDS, MAX_WORDS = 8, 60
"""Of a prompt; fewer leave nothing to ask about, and text encoders cut off more."""

MAX_QUESTION_WORDS = 40


class Scene(NamedTuple):
    """What to draw, and what to ask about it."""

    prompt: str
    questions: tuple[str, ...]


def ask(category: str, attempt: int, seed: int, num_questions: int) -> str:
    """Word the request for one scene; what it must contain is drawn from (seed, category, attempt)."""

    def draw(what: str, choices: tuple[str, ...]) -> str:
        return choices[seed_of(seed, "ask", category, attempt, what) % len(choices)]

    first = seed_of(seed, "ask", category, attempt, "kind")
    kinds = [KINDS[(first + n) % len(KINDS)] for n in range(num_questions)]
    one = num_questions == 1
    lines = [
        f"Write a prompt for a text-to-image model, and {'one question' if one else f'{num_questions} questions'} "
        "about the picture it will draw.",
        "",
        f"Topic: {CATEGORIES[category]}.",
        f"The picture: {draw('view', VIEWS)}, {draw('light', LIGHTS)}, with {draw('count', COUNTS)} and something "
        f"{draw('colour', COLOURS)}.",
        "",
        "The prompt is one sentence of 12 to 40 words. It names what is there, how many of it, in which colours and "
        "where. No famous people, brands or writing.",
        *(f"{'The question' if one else f'Question {n}'} {kind}." for n, kind in enumerate(kinds, 1)),
        "",
        "Reply with exactly these lines, each text on one line, and nothing before or after them:",
        "SCENE: <the prompt>",
        *(["QUESTION: <the question>"] if one else [f"QUESTION: <question {n}>" for n in range(1, num_questions + 1)]),
    ]
    return "\n".join(lines)


def read(reply: Reply, num_questions: int) -> Scene | Drop:
    """Read a reply that ``ask`` asked for, or say what is wrong with it."""
    if reply.truncated:
        return Drop("cut_off", "max_new_tokens ended the reply")
    lines = [line.strip() for line in reply.text.splitlines() if line.strip()]
    scenes = [_text(line, "SCENE:") for line in lines if line.startswith("SCENE:")]
    questions = tuple(_text(line, "QUESTION:") for line in lines if line.startswith("QUESTION:"))
    if len(scenes) != 1:
        return Drop("no_scene", f"{len(scenes)} lines begin with SCENE:")
    if len(questions) != num_questions:
        return Drop("wrong_questions", f"{len(questions)} lines begin with QUESTION:, not {num_questions}")
    if len(lines) > 1 + num_questions or not lines[0].startswith("SCENE:"):
        return Drop("other_lines", "there is more than the scene and its questions, or they are in disorder")
    return _checked(Scene(scenes[0], questions))


def words(text: str) -> list[str]:
    """Cut a text into its words, as they are compared and counted: without case and punctuation."""
    return re.findall(r"\w+", text.casefold())


def _text(line: str, head: str) -> str:
    text = " ".join(line.removeprefix(head).split())
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def _checked(scene: Scene) -> Scene | Drop:
    texts = (scene.prompt, *scene.questions)
    if found := next((text for text in texts if re.search(r"[<>\[\]{}]", text)), None):
        return Drop("placeholder", found)
    if not MIN_WORDS <= len(words(scene.prompt)) <= MAX_WORDS:
        return Drop("scene_length", f"{len(words(scene.prompt))} words, not {MIN_WORDS} to {MAX_WORDS}")
    for question in scene.questions:
        if not 1 < len(words(question)) <= MAX_QUESTION_WORDS or question[-1] not in "?.":
            return Drop("question_form", question)
    if len({tuple(words(text)) for text in texts}) < len(texts):
        return Drop("same_question", "two questions are alike, or one is the prompt")
    return scene
