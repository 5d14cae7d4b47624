"""The columns at each landing, and other people's formats in.

A stage's row carries the id of the prompt (``kitchen-0001``) or, from the answers on, of the question
(``kitchen-0001/2``: the third question about that prompt's image). Tables are joined by these ids.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from PIL import Image

from synthalign.types import Drop

IMAGE_TOKEN = "<image>"

MANIFEST = "manifest.json"
"""In a finished landing: the names of the shards that make up the table now, in order."""

DRAWS = pa.schema(
    {
        "id": pa.string(),
        "prompt": pa.string(),
        "candidates": pa.list_(
            pa.struct({"seed": pa.int64(), "guidance_scale": pa.float64(), "image": pa.binary()})  # image: PNG
        ),
    }
)
RANKS = pa.schema({"id": pa.string(), "scores": pa.list_(pa.float64()), "best": pa.int32()})
ANSWERS = pa.schema(
    {
        "id": pa.string(),
        "image_id": pa.string(),
        "question": pa.string(),
        "responder": pa.string(),
        "responses": pa.list_(pa.struct({"text": pa.string(), "truncated": pa.bool_()})),
    }
)
SCORES = pa.schema(
    {
        "id": pa.string(),
        "image_id": pa.string(),
        "question": pa.string(),
        "candidates": pa.list_(
            pa.struct(
                {
                    "responder": pa.string(),
                    "text": pa.string(),
                    "truncated": pa.bool_(),
                    "score": pa.float64(),  # null where the response was empty and nothing was asked
                }
            )
        ),
    }
)
PAIRS = pa.schema(
    {
        "id": pa.string(),
        "image_id": pa.string(),
        "prompt": pa.string(),
        "question": pa.string(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),  # as the datasets library has it
        "chosen": pa.string(),
        "rejected": pa.string(),
        "chosen_score": pa.float64(),
        "rejected_score": pa.float64(),
        "chosen_responder": pa.string(),
        "rejected_responder": pa.string(),
        "refused": pa.list_(pa.struct({"text": pa.string(), "reason": pa.string(), "detail": pa.string()})),
        "dropped": pa.string(),  # why there is no pair; null where there is one
        "detail": pa.string(),
    }
)


class PromptRow(NamedTuple):
    """What to draw, and what to ask about the image."""

    id: str
    prompt: str
    questions: tuple[str, ...]


class PairRow(NamedTuple):
    """One preference pair, its image apart. ``margin`` is score(chosen) - score(rejected), None if unscored."""

    id: str
    image_id: str
    question: str
    chosen: str
    rejected: str
    margin: float | None


class ImageFiles(Sequence[Image.Image]):
    """Image files, opened as RGB when indexed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - only integers are ever asked for
        return open_image(self.paths[index])

    def size(self, index: int) -> tuple[int, int]:
        """Return (width, height) from the file's header."""
        with Image.open(self.paths[index]) as image:
            return image.size


class ImageColumn(Sequence[Image.Image]):
    """Images embedded in a table of the datasets library, decoded as RGB when indexed."""

    def __init__(self, table: Any, column: str, indices: Sequence[int]) -> None:  # noqa: ANN401 - datasets is untyped
        self.table, self.column, self.indices = table, column, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
        return self._open(index).convert("RGB")

    def size(self, index: int) -> tuple[int, int]:
        """Return (width, height) from the image's header."""
        return self._open(index).size

    def _open(self, index: int) -> Image.Image:
        value = self.table[self.indices[index]][self.column]
        return value[0] if isinstance(value, list) else value


class PairSet(NamedTuple):
    """Pairs, their images in the same order (opened when indexed), and what was left out and why, by id."""

    rows: list[PairRow]
    images: ImageFiles | ImageColumn
    dropped: list[tuple[str, Drop]]


def open_image(path: Path) -> Image.Image:
    """Open an image file as RGB.

    Raises:
        ValueError: The file is missing or is no readable image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"image not found: {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image cannot be read: {path} ({error})") from None


def image_in(folder: Path, name: str, where: str) -> Path:
    """Return the path of a named image, which must exist and lie inside its folder.

    Raises:
        ValueError: ``name`` leads out of ``folder``, or there is no such file; ``where`` begins the message.
    """
    path = folder / name
    if not name or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{where}: image {name!r} leads out of its folder {folder}")
    if not path.is_file():
        raise ValueError(f"{where}: no image {name!r} in {folder}; is the image folder right?")
    return path


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a JSON array of objects, or one object a line; give each with the place to name in a message.

    Raises:
        ValueError: The file is missing, malformed (the line is named), or holds something else than objects.
    """
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}") from None
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: malformed JSON: {error.msg}") from None
        places = ((f"{path}, item {number}", row) for number, row in enumerate(rows, 1))
    else:
        places = _json_lines(path, text)
    for where, row in places:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object, found {type(row).__name__}")
        yield where, row


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: malformed JSON: {error.msg}") from None


def field(row: dict[str, Any], name: str, where: str) -> str:
    """Return a text field that must be there.

    Raises:
        ValueError: The field is absent or no text.
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name!r} must be text, found {value!r}")
    return value


def read_prompts(path: Path) -> list[PromptRow]:
    """Read a prompts file: one object a line, {"id", "prompt", "question"} or {"id", "prompt", "questions": [...]}.

    Raises:
        ValueError: A row is malformed, lacks a field, or repeats an id; the message names the line.
    """
    rows, seen = [], set()
    for where, row in json_rows(path):
        questions = row.get("questions", [row.get("question")])
        if not isinstance(questions, list) or not questions or not all(isinstance(q, str) and q for q in questions):
            raise ValueError(f"{where}: expected 'question' (text) or 'questions' (a list of texts)")
        prompt = PromptRow(field(row, "id", where), field(row, "prompt", where), tuple(questions))
        if prompt.id in seen:
            raise ValueError(f"{where}: id {prompt.id!r} stands twice; rows are joined by id")
        seen.add(prompt.id)
        rows.append(prompt)
    if not rows:
        raise ValueError(f"{path}: no prompts")
    return rows


def read_pairs(path: Path, images: Path | None = None) -> PairSet:
    """Read a set of preference pairs in any of the formats known.

    - The Synth-Align authors' JSON: ``conversations``, ``rejected_conversations`` and ``image``, a path inside
      ``images`` (github.com/pds-dpo/pds-dpo at 40ff9a9, response_generation_ranking/run.py).
    - TRL's conversational preference rows: ``prompt``, ``chosen``, ``rejected`` and ``images`` (parquet, or JSON whose
      images are paths inside ``images``).
    - Our own pairs landing: a folder of parquet shards.

    Args:
        path: A .json, .jsonl or .parquet file, or a folder of parquet files.
        images: Folder of the images, where rows name them by path; by default the folder of ``path``.

    Raises:
        ValueError: The file, a row or an image is not as it should be; the message names it.
    """
    if path.suffix in {".json", ".jsonl"}:
        return _pairs_from_json(path, images or path.parent)
    if (path / MANIFEST).is_file():
        files = [path / name for name in json.loads((path / MANIFEST).read_text())]
    else:
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"no pairs at {path}: expected a .json, .jsonl or .parquet file or a folder of parquet shards")
    return _pairs_from_parquet(path, files)


def _pairs_from_json(path: Path, folder: Path) -> PairSet:
    rows, paths, dropped = [], [], []
    unique = _UniqueIds()
    for number, (where, row) in enumerate(json_rows(path), 1):
        pair_id = unique(str(row.get("id", number)))
        name = row.get("image") or next(iter(row.get("images") or []), None)
        if not isinstance(name, str):
            raise ValueError(f"{where}: 'image' must be a path inside the image folder, found {name!r}")
        image = image_in(folder, name, where)
        turns = _turns_of(row, where)
        if isinstance(turns, Drop):
            dropped.append((pair_id, turns))
            continue
        rows.append(PairRow(pair_id, name, *turns, margin=None))
        paths.append(image)
    for image in dict.fromkeys(paths):
        _check_header(image)
    return PairSet(rows, ImageFiles(paths), dropped)


def _pairs_from_parquet(path: Path, files: list[Path]) -> PairSet:
    from datasets import Dataset
    from datasets import Image as ImageFeature
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        table = Dataset.from_parquet([str(file) for file in files])
    except Exception as error:  # the library wraps whatever pyarrow says in classes of its own
        raise ValueError(f"{path}: cannot be read as parquet ({str(error).splitlines()[0]})") from None
    ours = "dropped" in table.column_names
    column = "image" if "image" in table.column_names else "images"
    if column not in table.column_names:
        raise ValueError(f"{path}: no column 'image' or 'images' among {table.column_names}")
    if column == "image" and not isinstance(table.features["image"], ImageFeature):
        table = table.cast_column("image", ImageFeature())
    rows, kept, dropped = [], [], []
    unique = _UniqueIds()
    for index, row in enumerate(table.remove_columns([column])):
        pair_id = unique(str(row.get("id", index)))
        if ours:
            if row["dropped"] is not None:
                dropped.append((pair_id, Drop(row["dropped"], row["detail"])))
                continue
            margin = row["chosen_score"] - row["rejected_score"]
            rows.append(PairRow(pair_id, row["image_id"], row["question"], row["chosen"], row["rejected"], margin))
        else:
            turns = _turns_of(row, f"{path}, row {index}")
            if isinstance(turns, Drop):
                dropped.append((pair_id, turns))
                continue
            rows.append(PairRow(pair_id, str(row.get("image_id", pair_id)), *turns, margin=None))
        kept.append(index)
    return PairSet(rows, ImageColumn(table, column, kept), dropped)


def _turns_of(row: dict[str, Any], where: str) -> tuple[str, str, str] | Drop:
    """Return (question, chosen, rejected), or why the row has no such form."""
    if "conversations" in row:
        sides = [[(turn["from"], turn["value"]) for turn in _list(row, key, where, {"from", "value"})] for key in _LLAVA]
        names = ("human", "gpt")
    elif "chosen" in row:
        prompt = _list(row, "prompt", where, {"role", "content"}) if "prompt" in row else []
        sides = [
            [(m["role"], _text(m["content"])) for m in [*prompt, *_list(row, key, where, {"role", "content"})]]
            for key in ("chosen", "rejected")
        ]
        names = ("user", "assistant")
    else:
        raise ValueError(f"{where}: neither 'conversations' nor 'chosen' among its keys {sorted(row)}")
    for side in sides:
        if [name for name, _ in side] != list(names):
            return Drop("not_single_turn", f"turns of {[name for name, _ in side]}")
    (_, question), (_, chosen) = sides[0]
    (_, other), (_, rejected) = sides[1]
    question, other = (text.replace(IMAGE_TOKEN, "").strip() for text in (question, other))
    if question != other:
        return Drop("two_questions", f"chosen answers {question[:40]!r}, rejected {other[:40]!r}")
    return question, chosen.strip(), rejected.strip()


_LLAVA = ("conversations", "rejected_conversations")


def _list(row: dict[str, Any], key: str, where: str, keys: set[str]) -> list[dict[str, Any]]:
    value = row.get(key)
    if not isinstance(value, list) or not all(isinstance(turn, dict) and keys <= set(turn) for turn in value):
        raise ValueError(f"{where}: {key!r} must be a list of {{{', '.join(sorted(keys))}}}")
    return value


def _text(content: Any) -> str:  # noqa: ANN401 - a string, or a list of typed parts
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or [] if part.get("type") == "text")


class _UniqueIds:
    """Tell repeated ids apart: the second ``cat`` becomes ``cat#2``."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def __call__(self, row_id: str) -> str:
        self.seen[row_id] += 1
        return row_id if self.seen[row_id] == 1 else f"{row_id}#{self.seen[row_id]}"


def _check_header(path: Path) -> None:
    """Refuse a file that is no image before any training begins; its pixels are read later."""
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"image cannot be read: {path} ({error})") from None
