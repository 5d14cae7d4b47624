"""MMHal-Bench: open questions whose answers a judge rates."""

from synthalign.evals.mmhal.benchmark import MMHal

__all__ = ["MMHal"]
