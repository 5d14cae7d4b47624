"""What a model is asked that judges an answer without seeing the image: our words for it, or the user's own."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

FIELDS = ("contents", "question", "reference", "answer")
HASH_DIGITS = 12

PROMPT = """\
You check what an assistant says about an image. You cannot see the image yourself. You are given a list of things in \
it, the question that was asked, the answer of a person who did see it, and the assistant's answer. Judge two \
things: whether the assistant made anything up, and how much its answer tells.

Made up, or a hallucination, is any claim about the image that neither the list nor the person's answer bears out and \
that does not follow from them: an object that is not there, a wrong number, colour, place, action, relation, text or \
mood, or taking for granted what the question only pretends.

Not made up are:
- the same thing in other words, or a part for the whole;
- leaving things out, staying vague, or saying that something cannot be told;
- general knowledge and sensible reasoning that agree with what is known of the image.
The list and the person's answer are right but not complete. Do not count a plausible minor detail against the \
assistant only because nobody mentions it; count it if it contradicts them, or if the answer leans on it.

Case A
Image contents: bicycle, wheel, wall
Question: What colour is the dog beside the bicycle?
Person's answer: There is no dog; the bicycle leans on a wall alone.
Assistant's answer: The dog is brown and sits to the left of the bicycle.
Why: the question is a trap and the assistant fell into it. A dog, its colour and its place are all invented, and the \
answer tells nothing that is true beyond the bicycle it was given.
Rating: 0

Case B
Image contents: table, plate, orange, banana
Question: How many pieces of fruit are on the plate?
Person's answer: Four: three oranges and a banana.
Assistant's answer: The plate holds some oranges and a banana.
Why: it names the fruit rightly and counts them not at all. An answer that avoids the number is thin, but not untrue.
Rating: 4

Case C
Image contents: boat, person, lake, mountain
Question: Describe the scene.
Person's answer: Two people row a wooden boat over a calm lake; there are snowy mountains behind it.
Assistant's answer: Two people are rowing a small wooden boat across still water below snow-covered peaks. A \
lighthouse on the right bank shows them the way. It seems to be a cold and quiet day.
Why: the rowers, boat, water and peaks are right, and a cold, quiet day follows from snow and calm water. But nothing \
speaks for a lighthouse, and the answer builds on it.
Rating: 2

Case D
Image contents: traffic light, car, umbrella, street
Question: Why might drivers have to take care here?
Person's answer: It rains, and the street is wet, so cars may skid.
Assistant's answer: People carry umbrellas and the road shines, so it is probably raining. Tyres grip less on a wet \
road and braking takes longer; people who look down under umbrellas may step out late. Drivers should slow down before \
the lights.
Why: it says what the person says, argues from what is there, and adds only general knowledge that fits.
Rating: 6

First write two or three sentences on what the assistant's answer gets right and what, if anything, it makes up. Then, \
on a last line, write the word Rating, a colon, a space and one digit, and nothing after it. Do not write any other \
rating. The digits mean:
6 = nothing made up; answers in full, with sound reasoning or insight
5 = nothing made up; answers in full
4 = nothing made up; answers in part
3 = nothing made up; tells next to nothing
2 = something made up; otherwise answers in full
1 = something made up; otherwise answers in part
0 = something made up; tells next to nothing that is true

Now judge this one.
Image contents: {contents}
Question: {question}
Person's answer: {reference}
Assistant's answer: {answer}
"""


def prompt_in(file: Path | None) -> str:
    """Return what judges are asked: the text of a file, or our own.

    Args:
        file: Text with the fields {contents}, {question}, {reference} and {answer}, all of them; or with four empty
            ones, {}, which stand for these in this order, as in the benchmark's own script. A brace that is meant as
            one is written twice.

    Raises:
        ValueError: There is no such file, or it leaves out a field or has others.
    """
    if file is None:
        return PROMPT
    if not file.is_file():
        raise ValueError(f"no prompt file {file}; it holds what the judge is asked, with {_named()} in it")
    try:
        text = file.read_bytes().decode()  # byte for byte: its hash must be that of the file
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text at byte {error.start}") from None
    marks = [f"<{name}>" for name in FIELDS]
    try:
        filled = _fill(text, marks)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: cannot be filled in ({type(error).__name__}: {error}); its fields are {_named()}, or four empty "
            "ones, and other braces are written twice"
        ) from None
    if missing := [name for name, mark in zip(FIELDS, marks, strict=True) if mark not in filled]:
        raise ValueError(f"{file}: leaves out {{{missing[0]}}}; it must hold {_named()}, or four empty {{}}")
    return text


def asked(
    prompt: str,
    contents: Sequence[Sequence[str]],
    questions: Sequence[str],
    references: Sequence[str],
    answers: Sequence[str],
) -> list[str]:
    """Fill a prompt for each answer; what is in the image is listed with commas."""
    rows = zip(contents, questions, references, answers, strict=True)
    return [_fill(prompt, [", ".join(listed), *rest]) for listed, *rest in rows]


@lru_cache(maxsize=8)
def hash_of(prompt: str) -> str:
    """Return the first digits of the SHA-256 of a prompt, as ``sha256sum`` shows them of its file."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:HASH_DIGITS]


def _fill(prompt: str, values: Sequence[str]) -> str:
    return prompt.format(*values, **dict(zip(FIELDS, values, strict=True)))


def _named() -> str:
    return ", ".join(f"{{{name}}}" for name in FIELDS)
