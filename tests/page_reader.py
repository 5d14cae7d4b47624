"""Reads a page that we wrote: its blocks of data, its texts, its tags, its own code."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.data: dict[str, Any] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.code: dict[str, str] = {}
        self.text = ""
        self._open: dict[str, Any] | None = None
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        fields = self.data["names"]["fields"]
        self.rows = [dict(zip(fields, row, strict=True)) for row in self.data["rows"]]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = dict(attrs) if tag in {"script", "style"} else None

    def handle_data(self, data):
        if self._open is None:
            self.text += data
        elif "id" in self._open:
            self.data[self._open["id"]] = json.loads(data)
        else:
            self.code["script" if data.startswith('"use strict"') else "style"] = data

    def handle_endtag(self, tag):
        self._open = None
