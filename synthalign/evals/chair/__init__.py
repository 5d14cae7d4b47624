"""CHAIR: objects in captions that are not in the image."""

from synthalign.evals.chair.benchmark import CHAIR

__all__ = ["CHAIR"]
