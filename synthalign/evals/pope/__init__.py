"""POPE: does the model see objects that are not there?"""

from synthalign.evals.pope.benchmark import POPE

__all__ = ["POPE"]
