"""Images in files and in tables: opened when asked for, as RGB, and refused in one line."""

import hashlib
import io
import struct
import warnings
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 1 << 26
"""Of the largest image that is opened: 8192 x 8192, 200 MB as RGB. What is larger is refused by its header."""

# Pillow's own warning comes later than our refusal, and would be a second message about it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class _Images(Sequence[Image.Image]):
    """Encoded images, opened as RGB when indexed."""

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - only integers are ever asked for
        return open_image(self._source(index), self._where(index))

    def size(self, index: int) -> tuple[int, int]:
        """Return (width, height) from the image's header."""
        with _opened(self._source(index), self._where(index)) as image:
            return image.size

    def content(self, index: int) -> bytes:
        """Return the image as it is encoded; no pixel is decoded."""
        source = self._source(index)
        return source.getvalue() if isinstance(source, io.BytesIO) else _content(source)

    def digest(self, index: int) -> str:
        """Name the image's encoded content in 16 hexadecimal digits; no pixel is decoded."""
        return hashlib.blake2b(self.content(index), digest_size=8).hexdigest()

    def suffix(self, index: int) -> str:
        """Return the file suffix of the image's format, such as ``.png``."""
        with _opened(self._source(index), self._where(index)) as image:
            return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(name := str(image.format), f".{name.lower()}")

    def verify(self, index: int) -> None:
        """Refuse what is no image, or cut short, before any training begins.

        Raises:
            ValueError: It is not as it should be; the message names it.
        """
        verify(self._source(index), self._where(index))

    @abstractmethod
    def _source(self, index: int) -> Path | io.BytesIO: ...

    @abstractmethod
    def _where(self, index: int) -> str: ...


class ImageFiles(_Images):
    """Image files, opened as RGB when indexed.

    Args:
        paths: The files.
        places: Where each is named, to begin a message with.
    """

    def __init__(self, paths: Sequence[Path], places: Sequence[str] | None = None) -> None:
        self.paths, self.places = paths, places

    def __len__(self) -> int:
        return len(self.paths)

    def _source(self, index: int) -> Path:
        return self.paths[index]

    def _where(self, index: int) -> str:
        return str(self.paths[index]) if self.places is None else f"{self.places[index]}: {self.paths[index]}"


class ImageColumn(_Images):
    """Images embedded in a table of the datasets library, or named in it, decoded as RGB when indexed.

    Args:
        table: The table.
        column: Name of the column: an image, its bytes or its path, or a list of one of these.
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

    def name(self, index: int) -> str | None:
        """Return the path that the table names the image by; None where the image itself is in the table."""
        content, name = self._cell(index)
        return name if content is None else None

    def _where(self, index: int) -> str:
        return f"{self.place}, row {self.indices[index]}"

    def _source(self, index: int) -> Path | io.BytesIO:
        content, name = self._cell(index)
        return image_in(self.folder, str(name), self._where(index)) if content is None else io.BytesIO(content)

    def _cell(self, index: int) -> tuple[bytes | None, str | None]:
        value = self.table[self.indices[index]][self.column][0].as_py()
        value = value[0] if isinstance(value, list) else value
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if not value:
            raise ValueError(f"{self._where(index)}: there is no image in column {self.column!r}")
        if not isinstance(value, str | bytes):
            raise ValueError(f"{self._where(index)}: column {self.column!r} must hold images or their paths: {value!r}")
        return (value, None) if isinstance(value, bytes) else (None, value)


def open_image(source: Path | io.BytesIO, where: str | None = None) -> Image.Image:
    """Open an image as RGB; ``where`` stands for it in messages, by default its path.

    What is transparent shows white; of 16 bits of grey the upper 8 are kept; of an animation the first frame. An
    orientation noted in EXIF is not applied, as nowhere in LLaVA's own training.

    Raises:
        ValueError: The file is missing, is no readable image, or has more than ``MAX_PIXELS`` pixels.
    """
    with _opened(source, where) as image:
        if image.mode.startswith("I;16"):
            return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image.convert("RGBA"))
            return white.convert("RGB")
        return image.convert("RGB")


def verify(source: Path | io.BytesIO, where: str | None = None) -> None:
    """Refuse what ``open_image`` would; pixels are decoded only where nothing less tells whether they are all there.

    Raises:
        ValueError: The file is missing, is no readable image, or has more than ``MAX_PIXELS`` pixels.
    """
    with _opened(source, where) as image:
        if image.format == "PNG":
            image.verify()  # its checksums
        elif image.format not in {"JPEG", "MPO"} or not _ends(source):
            image.load()


def _ends(source: Path | io.BytesIO) -> bool:
    """Whether a JPEG's last marker is its end; inside, the marker's bytes stand for nothing else."""
    if isinstance(source, Path):
        with source.open("rb") as stream:
            stream.seek(max(0, source.stat().st_size - 1024))
            tail = stream.read()
    else:
        tail = source.getvalue()[-1024:]
    return tail.rstrip(b"\0\r\n").endswith(b"\xff\xd9")


@contextmanager
def _opened(source: Path | io.BytesIO, where: str | None = None) -> Iterator[Image.Image]:
    """Open an image; whatever is wrong with it, then or in the block, is a ValueError of one line."""
    place = where or str(source)
    try:
        with Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if image.mode in {"I", "F"}:
                raise ValueError(f"the range of its {image.mode!r} pixels is unknown: save it with 8 bits a channel")
            yield image
    except FileNotFoundError:
        raise ValueError(f"image not found: {place}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        megapixels = f"{MAX_PIXELS / 1e6:.0f} megapixels"
        raise ValueError(f"image is too large: {place} (more than {megapixels}); make it smaller") from None
    except _UNREADABLE as error:
        reason = "not in a known format" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise ValueError(f"image cannot be read: {place} ({reason})") from None


# What Pillow raises for a file that is no image, cut short, or malformed.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    RuntimeError,
    EOFError,
    LookupError,
    struct.error,
    zlib.error,
)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"image cannot be read: {path} ({error.strerror})") from None


def image_in(folder: Path, name: str, where: str) -> Path:
    """Return the path of a named image, which must exist and lie inside its folder, links followed.

    A folder in the hub's cache consists of links to the blobs beside it, which are as good as inside.

    Raises:
        ValueError: ``name`` leads out of ``folder``, or there is no such file; ``where`` begins the message.
    """
    path = folder / name
    if "\0" in str(path):
        raise ValueError(f"{where}: {str(path)[:60]!r} cannot be the path of an image")
    snapshots = [parent for parent in folder.absolute().parents if parent.name == "snapshots"]
    inside = [folder.resolve(), *((parent.parent / "blobs").resolve() for parent in snapshots)]
    try:
        if not name or not any(path.resolve().is_relative_to(root) for root in inside):
            raise ValueError(f"{where}: image {name!r} leads out of its folder {folder}")
        there = path.is_file()
    except (OSError, RuntimeError) as error:  # too long a name, links in a circle
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{where}: {name[:60]!r} cannot be the path of an image ({reason})") from None
    if not there:
        raise ValueError(f"{where}: no image {name!r} in {folder}; is the image folder right?")
    return path
