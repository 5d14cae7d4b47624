"""Layouts that keep an image's pairs in one batch, as the trie does, so that all three see the same batches."""

from dataclasses import dataclass
from typing import ClassVar

from synthalign.dpo import layouts


@dataclass(frozen=True, kw_only=True)
class Rows(layouts.Rows):
    shares_images: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Tree(layouts.Tree):
    shares_images: ClassVar[bool] = True
