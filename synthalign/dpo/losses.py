"""Preference losses: from log-probs to one loss per pair. B pairs."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from synthalign.types import PairLogps, PreferenceTerms


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Direct preference optimisation with the sigmoid loss.

    loss = -log sigmoid(margin), margin = beta * ((chosen - rejected) - (reference chosen - reference rejected)).
    Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7; label smoothing: Mitchell 2023, "A note on DPO with
    noisy preferences"; the NLL term: Pang et al. 2024 (arXiv 2404.19733), equation 1.

    Args:
        beta: Strength of the tie to the reference, > 0.
        label_smoothing: Chance that a pair's label is wrong, in [0, 0.5).
        nll_coef: Weight of the chosen response's negative log-likelihood per token, >= 0.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    nll_coef: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0, got {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}")
        if not self.nll_coef >= 0:
            raise ValueError(f"nll_coef must be >= 0, got {self.nll_coef}")

    def __call__(self, policy: PairLogps, reference: PairLogps) -> PreferenceTerms:
        """Return the losses and rewards of B pairs, shapes (B,)."""
        chosen = self.beta * (policy.chosen - reference.chosen)
        rejected = self.beta * (policy.rejected - reference.rejected)
        margin = chosen - rejected
        loss = -(1 - self.label_smoothing) * logsigmoid(margin) - self.label_smoothing * logsigmoid(-margin)
        if self.nll_coef:
            loss = loss - self.nll_coef * policy.chosen / policy.chosen_tokens
        return PreferenceTerms(loss, chosen.detach(), rejected.detach())
