"""A chat of a model that has no processor here: its words are numbers, and its images numbered."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from dpo.nine import IMAGE, _kinds
from PIL import Image


class NumberChat:
    """Encodes as Chat does. A question is its tokens' numbers; the image stands behind ``begins``."""

    def __init__(self, name: str, images: dict[str, torch.Tensor], tokens: Sequence[int], dtype: torch.dtype) -> None:
        self.model = self.name = name
        self.given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in images.items()}
        self.fills = tokens
        self.pictures = [Image.new("RGB", (n + 1, 1)) for n in range(len(tokens))]  # the width tells which it is
        self.tokenizer = SimpleNamespace(pad_token_id=0)
        self.processor = SimpleNamespace(batch_decode=self._decode)
        self.yes_no_ids = ([7], [9])

    @contextmanager
    def each_image_once(self) -> Iterator[dict[int, Any]]:
        yield {}

    def inputs(self, images: Sequence[Image.Image], questions: Sequence[str]) -> dict[str, torch.Tensor]:
        which = [image.width - 1 for image in images]
        rows = [self._row(n, [int(word) for word in text.split()]) for n, text in zip(which, questions, strict=True)]
        size = max(len(row["input_ids"]) for row in rows)
        padded = {key: torch.stack([self._left(row[key], size) for row in rows]) for key in rows[0]}
        return padded | self._pixels(which)

    @staticmethod
    def _decode(rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]

    def _row(self, image: int, words: list[int]) -> dict[str, torch.Tensor]:
        places = [IMAGE] * self.fills[image]
        placed = [292, *places, 293] if "image_grid_thw" in self.given else places
        ids = torch.tensor([1, 11, 12, *placed, *words])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | _kinds(self.name, ids)

    @staticmethod
    def _left(values: torch.Tensor, size: int) -> torch.Tensor:
        return torch.cat([values.new_zeros(size - len(values)), values])

    def _pixels(self, which: list[int]) -> dict[str, torch.Tensor]:
        grids = self.given.get("image_grid_thw")
        if grids is None:
            return {key: value[which] for key, value in self.given.items()}
        patches = self.given["pixel_values"].split(grids.prod(-1).tolist())
        return {"pixel_values": torch.cat([patches[n] for n in which]), "image_grid_thw": grids[which]}
