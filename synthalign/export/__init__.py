"""Exports: an adapter that plain transformers and peft load, a merged model that servers serve, and a model card."""

from synthalign.export.push import check_repo, push
from synthalign.export.writing import Written, write

__all__ = ["Written", "check_repo", "push", "write"]
