"""The columns at each landing, and other people's formats in.

A stage's row carries the id of the prompt (``kitchen-0001``) or, from the answers on, of the question
(``kitchen-0001/2``: the third question about that prompt's image). Tables are joined by these ids.
"""

import glob
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, UnidentifiedImageError

from synthalign.types import Drop

IMAGE_TOKEN = "<image>"

TABLE_SUFFIX = ".table"
"""Of a file in a finished landing that names one table's shards in order; runs whose prompts differ share shards."""

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
                    "score": pa.float64(),  # null where the response is empty, or the reward gave no finite number
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
        return _header(self.paths[index])

    def digest(self, index: int) -> str:
        """Name the file's content in 16 hexadecimal digits; no pixel is decoded."""
        return _digest(self.paths[index])


class ImageColumn(Sequence[Image.Image]):
    """Images embedded in a table of the datasets library, or named in it, decoded as RGB when indexed.

    Args:
        table: The table.
        column: Name of the column: an image or its path, or a list of one.
        indices: The rows meant, in order.
        folder: Images named by path lie in it.
        place: Where the table is from; begins a message.
    """

    def __init__(self, table: Any, column: str, indices: Sequence[int], folder: Path, place: str) -> None:  # noqa: ANN401
        # Arrow rows are not decoded: the library would, pixels and all, where the header is enough.
        self.table, self.column, self.indices = table.with_format("arrow"), column, indices
        self.folder, self.place = folder, place

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
        return open_image(self._source(index), self._where(index))

    def size(self, index: int) -> tuple[int, int]:
        """Return (width, height) from the image's header."""
        return _header(self._source(index), self._where(index))

    def digest(self, index: int) -> str:
        """Name the image's encoded content in 16 hexadecimal digits; no pixel is decoded."""
        return _digest(self._source(index))

    def _where(self, index: int) -> str:
        return f"{self.place}, row {self.indices[index]}"

    def _source(self, index: int) -> Path | io.BytesIO:
        value = self.table[self.indices[index]][self.column][0].as_py()
        value = value[0] if isinstance(value, list) else value
        content, name = (value["bytes"], value["path"]) if isinstance(value, dict) else (None, value)
        return image_in(self.folder, str(name), self._where(index)) if content is None else io.BytesIO(content)


class PairSet(NamedTuple):
    """Pairs, their images in the same order (opened when indexed), and what was left out and why, by id."""

    rows: list[PairRow]
    images: ImageFiles | ImageColumn
    dropped: list[tuple[str, Drop]]


def open_image(source: Path | io.BytesIO, where: str | None = None) -> Image.Image:
    """Open an image as RGB; ``where`` stands for it in messages, by default its path.

    Raises:
        ValueError: The file is missing or is no readable image.
    """
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except _UNREADABLE as error:
        raise _unreadable(source, where, error) from None


def _verify(path: Path) -> None:
    """Refuse a file that is no image before any training begins; its pixels are read later."""
    try:
        with Image.open(path) as image:
            image.verify()
    except _UNREADABLE as error:
        raise _unreadable(path, None, error) from None


def _header(source: Path | io.BytesIO, where: str | None = None) -> tuple[int, int]:
    try:
        with Image.open(source) as image:
            return image.size
    except _UNREADABLE as error:
        raise _unreadable(source, where, error) from None


def _digest(source: Path | io.BytesIO) -> str:
    content = source.read_bytes() if isinstance(source, Path) else source.getvalue()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


# What Pillow raises for a file that is missing, no image, cut short, malformed, or as large as an attack.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def _unreadable(source: Path | io.BytesIO, where: str | None, error: Exception) -> ValueError:
    place = where or str(source)
    if isinstance(error, FileNotFoundError):
        return ValueError(f"image not found: {place}")
    reason = "not in a known format" if isinstance(error, UnidentifiedImageError) else str(error)
    return ValueError(f"image cannot be read: {place} ({reason})")


def image_in(folder: Path, name: str, where: str) -> Path:
    """Return the path of a named image, which must exist and lie inside its folder, links followed.

    A folder in the hub's cache consists of links to the blobs beside it, which are as good as inside.

    Raises:
        ValueError: ``name`` leads out of ``folder``, or there is no such file; ``where`` begins the message.
    """
    path = folder / name
    snapshots = [parent for parent in folder.absolute().parents if parent.name == "snapshots"]
    inside = [folder.resolve(), *((parent.parent / "blobs").resolve() for parent in snapshots)]
    if not name or "\0" in name or not any(path.resolve().is_relative_to(root) for root in inside):
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
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}") from None
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: malformed JSON: {error.msg}") from None
        places: Iterator[tuple[str, Any]] = ((f"{path}, item {number}", row) for number, row in enumerate(rows, 1))
    else:
        places = _json_lines(path, text)
    escapes_surrogates = re.search(r"\\u[dD][89a-fA-F]", text) is not None
    for where, row in places:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object, found {type(row).__name__}")
        if escapes_surrogates and _has_half_characters(row):
            raise ValueError(f"{where}: holds half of a surrogate pair (\\ud800 to \\udfff), which is no text")
        yield where, row


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines: JSON's texts may hold U+2028 and other ends of lines that are none here.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: malformed JSON: {error.msg}") from None


def _has_half_characters(row: dict[str, Any]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


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
        if not isinstance(questions, list) or not questions or not all(isinstance(q, str) for q in questions):
            raise ValueError(f"{where}: expected 'question' (text) or 'questions' (a list of texts)")
        prompt = PromptRow(field(row, "id", where), field(row, "prompt", where), tuple(questions))
        if not all(text.strip() for text in (prompt.prompt, *prompt.questions)):
            raise ValueError(f"{where}: the prompt or a question is empty")
        if any(IMAGE_TOKEN in question for question in questions):
            raise ValueError(f"{where}: leave {IMAGE_TOKEN!r} out of the question; the model's template puts it there")
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
    - Our own pairs landing: a folder of parquet shards, or the .table file in it that names those of one run.

    Args:
        path: A .json, .jsonl, .parquet or .table file, or a folder of parquet files.
        images: Folder of the images, where rows name them by path; by default the folder of ``path``.

    Raises:
        ValueError: The file, a row or an image is not as it should be; the message names it.
    """
    if path.suffix in {".json", ".jsonl"}:
        return _pairs_from_json(path, images or path.parent)
    if path.is_dir() and len(tables := sorted(path.glob(f"*{TABLE_SUFFIX}"))) > 1:
        names = ", ".join(table.name for table in tables)
        raise ValueError(f"{path} holds the pairs of {len(tables)} prompts files: name one of {names} in it")
    elif path.is_dir() and tables:
        path = tables[0]
    if path.suffix == TABLE_SUFFIX and path.is_file():
        files = [path.parent / name for name in json.loads(path.read_text())]
    else:
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"no pairs at {path}: expected a .json, .jsonl or .parquet file or a folder of parquet shards")
    return _pairs_from_parquet(path, files, images or (path if path.is_dir() else path.parent))


def _pairs_from_json(path: Path, folder: Path) -> PairSet:
    rows, paths, dropped = [], [], []
    unique = _UniqueIds()
    for number, (where, row) in enumerate(json_rows(path), 1):
        pair_id = unique(_id_of(row, number))
        names = row.get("image") or row.get("images") or []
        names = names if isinstance(names, list) else [names]
        turns = _turns_of(row, where) if len(names) <= 1 else _several(names)
        if isinstance(turns, Drop):
            dropped.append((pair_id, turns))
            continue
        if not names or not isinstance(names[0], str):
            raise ValueError(f"{where}: 'image' must be a path inside the image folder, found {row.get('image')!r}")
        paths.append(image_in(folder, names[0], where))
        rows.append(PairRow(pair_id, names[0], *turns, margin=None))
    for image in dict.fromkeys(paths):
        _verify(image)
    return PairSet(rows, ImageFiles(paths), dropped)


def _pairs_from_parquet(path: Path, files: list[Path], folder: Path) -> PairSet:
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        table = Dataset.from_parquet([glob.escape(str(file)) for file in files])
    except Exception as error:  # the library wraps whatever pyarrow says in classes of its own
        raise ValueError(f"{path}: cannot be read as parquet ({str(error).splitlines()[0]})") from None
    ours = "dropped" in table.column_names
    column = "image" if "image" in table.column_names else "images"
    if column not in table.column_names:
        raise ValueError(f"{path}: no column 'image' or 'images' among {table.column_names}")
    cells = table.data.column(column)
    lists = pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type)
    counts = (pc.list_value_length(cells) if lists else pc.is_valid(cells)).to_pylist()
    rows, kept, dropped = [], [], []
    unique = _UniqueIds()
    for index, row in enumerate(table.remove_columns([column])):
        where = f"{path}, row {index}"
        pair_id = unique(_id_of(row, index))
        if ours and row["dropped"] is not None:
            dropped.append((pair_id, Drop(row["dropped"], row["detail"])))
            continue
        if not counts[index]:
            raise ValueError(f"{where}: there is no image in column {column!r}")
        if ours:
            scores = row["chosen_score"], row["rejected_score"]
            margin = None if None in scores else scores[0] - scores[1]
            rows.append(PairRow(pair_id, row["image_id"], row["question"], row["chosen"], row["rejected"], margin))
        else:
            turns = _turns_of(row, where) if counts[index] == 1 else _several(range(counts[index]))
            if isinstance(turns, Drop):
                dropped.append((pair_id, turns))
                continue
            rows.append(PairRow(pair_id, str(row.get("image_id", pair_id)), *turns, margin=None))
        kept.append(index)
    return PairSet(rows, ImageColumn(table, column, kept, folder, str(path)), dropped)


def _id_of(row: dict[str, Any], number: int) -> str:
    return str(number if row.get("id") is None else row["id"])


def _several(images: Sequence[Any]) -> Drop:
    return Drop("several_images", f"{len(images)} images; a question here is about one")


def _turns_of(row: dict[str, Any], where: str) -> tuple[str, str, str] | Drop:
    """Return (question, chosen, rejected), or why the row has no such form."""
    if "conversations" in row:
        sides = [
            [(turn["from"], _text(turn["value"], where)) for turn in _list(row, key, where, {"from", "value"})]
            for key in _LLAVA
        ]
        names = ("human", "gpt")
    elif "chosen" in row:
        prompt = _list(row, "prompt", where, {"role", "content"}) if "prompt" in row else []
        sides = [
            [(m["role"], _text(m["content"], where)) for m in [*prompt, *_list(row, key, where, {"role", "content"})]]
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


def _text(content: Any, where: str) -> str:  # noqa: ANN401 - a string, or a list of typed parts
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{where}: a turn must be text or a list of parts, found {content!r}")
    return "".join(part.get("text") or "" for part in parts if part.get("type") == "text")


class _UniqueIds:
    """Tell repeated ids apart: the second ``cat`` becomes ``cat#2``."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}  # how often each id came, the ids given here included

    def __call__(self, row_id: str) -> str:
        unique = row_id
        while unique in self.seen:
            self.seen[row_id] += 1
            unique = f"{row_id}#{self.seen[row_id]}"
        self.seen[unique] = 1
        return unique
