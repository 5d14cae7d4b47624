"""Puts data and text into a page so that nothing in them is taken for markup, whoever wrote it."""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import IO, Any


def data(value: Any) -> str:  # noqa: ANN401 - anything JSON can carry
    """Write JSON that may stand inside a script element: without ``<``, nothing in it ends or begins an element.

    Numbers that are not finite, which JSON has no word for, become null.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def block(name: str, json_text: str) -> str:
    """Return a script element that holds data under an id, and runs nothing."""
    return f'<script type="application/json" id="{name}">{json_text}</script>\n'


def text(value: object) -> str:
    """Return plain text as HTML, for elements and quoted attributes."""
    return html.escape(str(value), quote=True)


@cache
def own(name: str) -> str:
    """Read one of the files that lie beside this one."""
    return (files("synthalign.pages") / name).read_text(encoding="utf-8")


def csp_hash(content: str) -> str:
    """Name a script or a style by its content, as a Content-Security-Policy does: no other may run on the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def fill(template: str, parts: Mapping[str, str | Callable[[IO[str]], object]], out: IO[str]) -> None:
    """Write a template with its ``{{names}}`` replaced, by texts or by what functions write."""
    for number, piece in enumerate(re.split(r"\{\{(\w+)\}\}", template)):
        if number % 2 == 0:
            out.write(piece)
        elif isinstance(part := parts[piece], str):
            out.write(part)
        else:
            part(out)


def _finite(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
