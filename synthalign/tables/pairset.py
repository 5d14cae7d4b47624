"""Preference pairs as training sees them, whatever format they came in."""

from typing import NamedTuple

from synthalign.tables.images import ImageColumn, ImageFiles
from synthalign.types import Drop


class PairRow(NamedTuple):
    """One preference pair, its image apart.

    Texts come without white space around them. ``image_id`` is shared by the pairs about one image. The rest is None
    where nobody said: the scores of the response reward, the models that answered, and what the image was drawn from.
    """

    id: str
    image_id: str
    question: str
    chosen: str
    rejected: str
    chosen_score: float | None = None
    rejected_score: float | None = None
    chosen_responder: str | None = None
    rejected_responder: str | None = None
    image_prompt: str | None = None

    @property
    def margin(self) -> float | None:
        """score(chosen) - score(rejected), None if unscored."""
        unscored = self.chosen_score is None or self.rejected_score is None
        return None if unscored else self.chosen_score - self.rejected_score  # type: ignore[operator]


class PairSet(NamedTuple):
    """Pairs, their images in the same order (opened when indexed), and what was left out and why, by id."""

    rows: list[PairRow]
    images: ImageFiles | ImageColumn
    dropped: list[tuple[str, Drop]]
