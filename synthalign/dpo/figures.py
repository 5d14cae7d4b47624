"""What is told of training: one figure per pair, to be averaged over pairs. B pairs."""

from typing import NamedTuple

from torch import Tensor

from synthalign.types import PairLogps, PreferenceTerms


class Figures(NamedTuple):
    """Each (B,), or their mean. Rewards are beta times the log-ratio to the reference; log-probs the policy's, nats."""

    loss: Tensor
    reward_margin: Tensor  # reward of chosen - reward of rejected
    accuracy: Tensor  # 1 where the margin is above 0; a tie, as before the first step, is half right
    chosen_reward: Tensor
    rejected_reward: Tensor
    chosen_logps: Tensor
    rejected_logps: Tensor
    chosen_logratio: Tensor  # of chosen to the reference, nats: how far it has moved from where it was
    chosen_tokens: Tensor
    rejected_tokens: Tensor


def figures(terms: PreferenceTerms, policy: PairLogps, reference: PairLogps) -> Figures:
    """Return the figures of B pairs, without gradient."""
    loss = terms.loss.detach()
    margin = terms.chosen_rewards - terms.rejected_rewards
    accuracy = (margin > 0).to(loss) + 0.5 * (margin == 0).to(loss)
    logps = (policy.chosen.detach(), policy.rejected.detach(), policy.chosen.detach() - reference.chosen)
    tokens = (policy.chosen_tokens.to(loss), policy.rejected_tokens.to(loss))
    return Figures(loss, margin, accuracy, terms.chosen_rewards, terms.rejected_rewards, *logps, *tokens)
