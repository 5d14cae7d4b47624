"""Images of other formats, modes and sizes than their names and headers say, cut short, or none at all."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from malformed.sets import reading
from malformed.torn import Draw, integer, one_of, tear
from PIL import Image

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16")
FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "ICO", "PPM", "TGA", "PCX", "SGI", "PDF", "EPS", "JPEG2000")
SIZES = ((1, 1), (1, 900), (900, 1), (2, 2), (640, 480))
WAYS = ("a mode", "a mode", "a size", "a claim", "a chunk", "torn", "torn", "text")
TEXTS = (
    b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
    b"<html>404 not found</html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    b"GIF89a",
    b"\xff\xd8\xff\xd9",
    b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    b"P6\n999999 999999\n255\n",
    b"P6\n-3 4\n255\n",
    b"P3\n2 2\n255\nred green blue\n",
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    b"II*\x00\x08\x00\x00\x00\xff\xff",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n",
    b"BM" + b"\xff" * 60,
)


def malform(folder: Path, draw: Draw) -> tuple[list[str], str]:
    """Spoil one image of the set; return the command that reads it, and what was done."""
    path = one_of(draw, sorted((folder / "set" / "images").iterdir()))
    way = one_of(draw, WAYS)
    if way == "a mode":
        way = _drawn(path, one_of(draw, MODES), one_of(draw, FORMATS), (48, 36))
    elif way == "a size":
        way = _drawn(path, "RGB", one_of(draw, FORMATS), one_of(draw, SIZES))
    elif way == "a claim":
        way = _claims(path, one_of(draw, [0, 1, 47, 49, 20_000, 2**31 - 1, 2**32 - 1]), integer(draw, 0, 16))
    elif way == "a chunk":
        way = _chunk(path, one_of(draw, [b"iTXt", b"zTXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"IDAT", b"QuIt"]), draw)
    elif way == "text":
        way = repr(text := one_of(draw, TEXTS))
        path.write_bytes(text)
    else:
        way = tear(path, draw, [folder / "set" / "pairs.json", folder / "last.ckpt"])
    return reading(folder, "set/pairs.json", draw), f"{path.name}, {way}"


def _drawn(path: Path, mode: str, form: str, size: tuple[int, int]) -> str:
    """Put a picture of another mode and format under the same name; as PNG where a format lacks the mode."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8))
    image = noise.convert("L").convert(mode) if mode in {"I", "F", "I;16", "LA", "PA", "1"} else _converted(noise, mode)
    stream = io.BytesIO()
    try:
        image.save(stream, form)
    except (OSError, ValueError, KeyError):
        form, stream = "TIFF", io.BytesIO()
        (image if mode not in {"PA", "HSV", "RGBX"} else noise).save(stream, form)
    path.write_bytes(stream.getvalue())
    return f"{form} {mode} {size[0]}x{size[1]}"


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if mode == "LAB":
        return Image.frombytes("LAB", image.size, image.tobytes())
    return image.convert(mode)


def _claims(path: Path, side: int, bits: int) -> str:
    """Let a PNG's header claim another width and depth, with a checksum that is right."""
    content = path.read_bytes()
    header = b"IHDR" + struct.pack(">I", side) + content[20:24] + bytes([bits]) + content[25:29]
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    return f"claims to be {side} wide, {bits} bits deep"


def _chunk(path: Path, kind: bytes, draw: Draw) -> str:
    """Put a chunk into a PNG: nothing, noise, or zeros that were packed a thousandfold."""
    content = path.read_bytes()
    packed = (
        b"Title\0\1\0\0\0" + zlib.compress(bytes(1 << 24)) if kind == b"iTXt" else b"x\0\0" + zlib.compress(bytes(999))
    )
    inner = one_of(draw, [b"", b"\xff" * 7, packed])
    chunk = struct.pack(">I", len(inner)) + kind + inner + struct.pack(">I", zlib.crc32(kind + inner))
    path.write_bytes(content[:33] + chunk + content[33:])
    return f"a {kind.decode()} of {len(inner)} bytes"
