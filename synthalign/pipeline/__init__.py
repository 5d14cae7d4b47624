"""From prompts to pairs: draw, rank, answer, score, pair. The only room that knows the order."""

from synthalign.pipeline.synthesis import Synthesis, summary

__all__ = ["Synthesis", "summary"]
