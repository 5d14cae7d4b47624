"""Text to image in the offline world: reads a caption, makes a painter's mistakes, and draws what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL.Image import Image

from synthalign.types import ImageRequest
from synthalign.world.language import parse
from synthalign.world.render import render
from synthalign.world.scenes import Scene, spoil


@dataclass(frozen=True, kw_only=True)
class Renderer:
    """An ImageGenerator that draws captions of the offline world, more or less faithfully.

    Args:
        levels: how careless a drawing may be: each request gets one of these, the probability that an object comes out
            wrong. ``[0.0]`` draws every prompt faithfully.
    """

    levels: tuple[float, ...] = (0.05, 0.15, 0.3, 0.5)

    def __post_init__(self) -> None:
        """Refuse what is not a list of probabilities."""
        if not self.levels or not all(0 <= level <= 1 for level in self.levels):
            raise ValueError(f"Renderer: levels must be one or more probabilities from 0 to 1, not {self.levels!r}")

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """Draw one 48 x 48 RGB image per request; the request alone decides every pixel."""
        return [render(self.imagine(request), _random("render", request)) for request in requests]

    def imagine(self, request: ImageRequest) -> Scene:
        """Return the scene that the request's image shows, mistakes included.

        Raises:
            ValueError: if the prompt is not a caption of the offline world.
        """
        rng = _random("imagine", request)
        return spoil(parse(request.prompt), rng, rng.choice(self.levels))

    def release(self) -> None:
        """Do nothing: there are no weights."""


def _random(purpose: str, request: ImageRequest) -> Random:
    return Random(f"{purpose} {request.seed} {float(request.guidance_scale)} {request.prompt}")
