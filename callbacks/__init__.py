"""Callbacks: evaluations in training, and what is kept of it."""

from synthalign.callbacks.evaluate import Evaluate as Evaluate
from synthalign.callbacks.save_adapter import SaveAdapter as SaveAdapter
