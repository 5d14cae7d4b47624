"""MME's hallucination subset: two yes/no questions about each image."""

from synthalign.evals.mme.benchmark import MME

__all__ = ["MME"]
