"""The pairs that are fit for training, as tokens, and what a batch needs to know of them beforehand."""

from collections.abc import Sequence
from typing import NamedTuple

from torch.utils.data import Dataset

from synthalign.datamodules.filling import Load
from synthalign.dpo.batch import PairTokens
from synthalign.store import digest
from synthalign.tables import PairSet
from synthalign.vlm import Chat


class Entry(NamedTuple):
    """A pair that is fit: its place in the set, its responses' tokens, and the counts that batches are made by."""

    place: int
    chosen: list[int]
    rejected: list[int]
    prompt_length: int  # tokens, its image's included
    image_tokens: int  # those of the prompt that stand for its image

    @property
    def length(self) -> int:
        """Tokens of the longer row: prompt and response."""
        return self.prompt_length + max(len(self.chosen), len(self.rejected))


class PairDataset(Dataset[PairTokens]):
    """Pairs that are fit; an image is opened when a batch needs it."""

    def __init__(self, pairs: PairSet, entries: Sequence[Entry]) -> None:
        self.pairs, self.entries = pairs, entries
        rows = [pairs.rows[entry.place] for entry in entries]
        self.ids = [row.id for row in rows]
        self.lengths = [entry.length for entry in entries]
        self.loads = [
            Load(entry.prompt_length + len(entry.chosen) + len(entry.rejected), row.image_id, entry.image_tokens)
            for entry, row in zip(entries, rows, strict=True)
        ]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.entries)

    def __getitem__(self, position: int) -> PairTokens:
        """Return one pair with its image open."""
        entry = self.entries[position]
        row = self.pairs.rows[entry.place]
        return PairTokens(
            id=row.id,
            image=self.pairs.images[entry.place],
            image_id=row.image_id,
            question=row.question,
            chosen=entry.chosen,
            rejected=entry.rejected,
        )

    def fingerprint(self, position: int, chat: Chat) -> str:
        """Digest what the log-probs of a pair depend on besides the model: prompt, responses' tokens, image."""
        entry = self.entries[position]
        prompt = chat.prompt(self.pairs.rows[entry.place].question)
        return digest([prompt, entry.chosen, entry.rejected, self.pairs.images.digest(entry.place)])
