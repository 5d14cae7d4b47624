"""AMBER: descriptions, and yes/no questions about objects, attributes and relations."""

from synthalign.evals.amber.benchmark import AMBER

__all__ = ["AMBER"]
