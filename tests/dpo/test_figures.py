"""The figures that are told of a pair, by hand."""

import torch

from synthalign.dpo.figures import figures
from synthalign.types import PairLogps, PreferenceTerms


def test_figures_of_three_pairs_by_hand():
    loss = torch.tensor([0.5, 0.7, 0.9], requires_grad=True)
    terms = PreferenceTerms(loss, torch.tensor([0.3, 0.1, -0.2]), torch.tensor([-0.1, 0.1, 0.4]))
    policy = PairLogps(
        torch.tensor([-3.0, -4.0, -5.0], requires_grad=True),
        torch.tensor([-6.0, -7.0, -8.0], requires_grad=True),
        torch.tensor([1, 2, 3]),
        torch.tensor([4, 5, 6]),
    )
    reference = PairLogps(torch.tensor([-2.0, -4.5, -5.0]), *[torch.zeros(3)] * 3)
    told = figures(terms, policy, reference)
    expected = {
        "loss": [0.5, 0.7, 0.9],
        "reward_margin": [0.4, 0.0, -0.6],
        "accuracy": [1.0, 0.5, 0.0],  # right, a tie, wrong
        "chosen_reward": [0.3, 0.1, -0.2],
        "rejected_reward": [-0.1, 0.1, 0.4],
        "chosen_logps": [-3.0, -4.0, -5.0],
        "rejected_logps": [-6.0, -7.0, -8.0],
        "chosen_logratio": [-1.0, 0.5, 0.0],
        "chosen_tokens": [1.0, 2.0, 3.0],
        "rejected_tokens": [4.0, 5.0, 6.0],
    }
    assert set(told._fields) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(getattr(told, name), torch.tensor(values))
        assert not getattr(told, name).requires_grad
