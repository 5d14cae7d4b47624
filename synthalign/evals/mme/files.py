"""MME's files: questions as they are released or as its evaluation tool lists them, and that tool's answer files."""

from collections.abc import Sequence
from pathlib import Path

from synthalign.evals.questions import image_of
from synthalign.tables import text_in
from synthalign.types import Question, Reply

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")
PAIR = 2
"""Questions about one image."""


def read_task(folder: Path, task: str, images: Path | None) -> list[Question]:
    """Read a task's questions; their ids are ``task/image/1`` and ``task/image/2``.

    Args:
        folder: With ``<task>.txt``, lines of image, question and truth between tabs; or with a folder ``<task>`` of
            images and, beside them or in ``questions_answers_YN``, a text file for each of question and truth.
        task: Such as ``existence``.
        images: Folder of the images; None where they are not at hand.

    Raises:
        ValueError: There is neither, a line is malformed, a truth is neither yes nor no, or an image has other than
            two questions.
    """
    listed, released = folder / f"{task}.txt", folder / task
    if listed.is_file():
        rows = _listed(listed)
    elif released.is_dir():
        rows = _released(released)
    else:
        raise ValueError(f"{folder}: neither {task}.txt nor a folder {task}; is it MME's folder of questions?")
    by_image: dict[str, list[Question]] = {}
    for where, image, text, truth in rows:
        if truth.lower() not in ("yes", "no"):
            raise ValueError(f"{where}: the truth must be Yes or No, found {truth!r}")
        pair = by_image.setdefault(image, [])
        number = f"{task}/{image}/{len(pair) + 1}"
        pair.append(Question(number, _image(images, task, image, where), text, task, truth.lower()))
        if len({question.text for question in pair}) < len(pair):
            raise ValueError(f"{where}: a second time the question {text!r} about {image}")
    if not by_image:
        raise ValueError(f"{folder}: no questions of the task {task!r}")
    for image, pair in by_image.items():
        if len(pair) != PAIR:
            raise ValueError(f"{folder}: {len(pair)} questions of {task!r} about {image}; there must be {PAIR}")
    return [question for pair in by_image.values() for question in pair]


def read_results(path: Path, tasks: Sequence[str], questions: Sequence[Question]) -> dict[str, Reply]:
    """Read answer files of the evaluation tool: image, question, truth and answer between tabs.

    Args:
        path: A folder with ``<task>.txt`` for every task, or that file if there is one task.
        tasks: Which are asked; others' files are left alone.
        questions: All that were asked; each line is matched with one by task, image and question. The published forms
            of a question differ in blanks, which do not count.

    Returns:
        Answers by the questions' ids; a line that belongs to no question has its place for an id.

    Raises:
        ValueError: A file is missing or malformed, a line's truth is not the question's, or a question stands twice.
    """
    if path.is_file() and len(tasks) != 1:
        raise ValueError(f"{path}: one file holds one task; give the folder of {', '.join(tasks)} or set `tasks`")
    known = {(one.kind, _name(one), _spaced(one.text)): one for one in questions}
    answers: dict[str, Reply] = {}
    for task in tasks:
        for where, columns in _columns(path if path.is_file() else path / f"{task}.txt", 4):
            image, text, truth, answer = columns
            question = known.get((task, image, _spaced(text)))
            if question is not None and question.truth != truth.strip().lower():
                raise ValueError(f"{where}: the truth is {truth!r}, but {question.truth!r} among the questions")
            number = where if question is None else question.id
            if number in answers:
                raise ValueError(f"{where}: a second answer to {number!r}")
            answers[number] = Reply(answer)
    return answers


def _listed(file: Path) -> list[tuple[str, str, str, str]]:
    return [(where, image, text.strip(), truth.strip()) for where, (image, text, truth) in _columns(file, 3)]


def _released(folder: Path) -> list[tuple[str, str, str, str]]:
    """Read a text file per image; its name is the image's but for the ending."""
    texts = folder / "questions_answers_YN"
    texts, pictures = (texts, folder / "images") if texts.is_dir() else (folder, folder)
    names = {path.stem: path.name for path in pictures.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
    rows = []
    for file in sorted(texts.glob("*.txt")):
        for where, (text, truth) in _columns(file, 2):
            if file.stem not in names:
                raise ValueError(f"{where}: no image {file.stem}.jpg or .png in {pictures}")
            rows.append((where, names[file.stem], text.strip(), truth.strip()))
    return rows


def _columns(file: Path, count: int) -> list[tuple[str, list[str]]]:
    rows = []
    for number, line in enumerate(text_in(file).split("\n"), 1):
        columns, where = line.split("\t"), f"{file}, line {number}"
        if columns == [""]:
            continue
        if len(columns) != count:
            raise ValueError(f"{where}: expected {count} columns between tabs, found {len(columns)}")
        rows.append((where, columns))
    return rows


def _image(images: Path | None, task: str, image: str, where: str) -> Path:
    """Find an image in the folder of its task, or in ``images`` in it; tasks may have images of the same name."""
    if images is None:
        return Path(task, image)
    inner = images / task / "images"
    return image_of(inner if inner.is_dir() else images / task, image, where)


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _name(question: Question) -> str:
    return question.id.removeprefix(f"{question.kind}/").rpartition("/")[0]
