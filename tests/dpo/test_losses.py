"""DPO's loss, by hand."""

import math

import pytest
import torch

from synthalign.dpo.losses import DPO
from synthalign.types import PairLogps


def logps(chosen, rejected, tokens=(4, 8)):
    """One pair's log-probs and numbers of tokens."""
    counts = [torch.tensor([count]) for count in tokens]
    return PairLogps(torch.tensor([chosen]), torch.tensor([rejected]), *counts)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# log-ratios: chosen +2, rejected -3; so at beta 0.1 the rewards are 0.2 and -0.3, and the margin is 0.5
POLICY, REFERENCE = logps(-10.0, -20.0), logps(-12.0, -17.0)


def test_a_policy_that_is_its_reference_loses_log_2():
    terms = DPO(beta=0.7)(POLICY, POLICY)
    assert terms.loss.item() == pytest.approx(math.log(2), rel=1e-7)
    assert terms.chosen_rewards.item() == terms.rejected_rewards.item() == 0


def test_loss_and_rewards_are_those_of_the_paper():
    terms = DPO(beta=0.1)(POLICY, REFERENCE)
    assert terms.chosen_rewards.item() == pytest.approx(0.2)
    assert terms.rejected_rewards.item() == pytest.approx(-0.3)
    assert terms.loss.item() == pytest.approx(-math.log(sigmoid(0.5)), rel=1e-6)


def test_exchanging_the_answers_flips_the_margin():
    here = DPO()(POLICY, REFERENCE)
    there = DPO()(logps(-20.0, -10.0), logps(-17.0, -12.0))
    assert there.chosen_rewards - there.rejected_rewards == -(here.chosen_rewards - here.rejected_rewards)
    assert there.loss.item() == pytest.approx(-math.log(sigmoid(-0.5)), rel=1e-6)


def test_gradient_is_beta_times_the_chance_of_being_wrong():
    policy = logps(-10.0, -20.0)
    policy.chosen.requires_grad_()
    policy.rejected.requires_grad_()
    DPO(beta=0.1)(policy, REFERENCE).loss.sum().backward()
    assert policy.chosen.grad.item() == pytest.approx(-0.1 * sigmoid(-0.5), rel=1e-6)
    assert policy.rejected.grad.item() == pytest.approx(0.1 * sigmoid(-0.5), rel=1e-6)


def test_rewards_carry_no_gradient():
    policy = logps(-10.0, -20.0)
    policy.chosen.requires_grad_()
    terms = DPO()(policy, REFERENCE)
    assert terms.loss.requires_grad
    assert not terms.chosen_rewards.requires_grad and not terms.rejected_rewards.requires_grad


def test_label_smoothing_mixes_the_losses_of_both_labels():
    smoothed = DPO(beta=0.1, label_smoothing=0.2)(POLICY, REFERENCE).loss.item()
    assert smoothed == pytest.approx(-0.8 * math.log(sigmoid(0.5)) - 0.2 * math.log(sigmoid(-0.5)), rel=1e-6)


def test_the_nll_term_is_the_chosen_answers_per_token():
    terms = DPO(beta=0.1, nll_coef=0.5)(POLICY, REFERENCE)
    assert terms.loss.item() == pytest.approx(-math.log(sigmoid(0.5)) + 0.5 * 10 / 4, rel=1e-6)
    assert terms.chosen_rewards.item() == pytest.approx(0.2)  # it is no part of the reward


def test_float64_stays_float64():
    policy, reference = (PairLogps(one.chosen.double(), one.rejected.double(), *one[2:]) for one in (POLICY, REFERENCE))
    terms = DPO(beta=0.1, label_smoothing=0.1, nll_coef=1.0)(policy, reference)
    assert {terms.loss.dtype, terms.chosen_rewards.dtype, terms.rejected_rewards.dtype} == {torch.float64}


def test_a_margin_beyond_any_exponent_gives_a_finite_loss():
    terms = DPO(beta=1.0)(logps(-2000.0, -1.0), logps(-1.0, -2000.0))
    assert terms.loss.item() == pytest.approx(3998)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta": 0.0}, "beta must be > 0, got 0.0"),
        ({"beta": math.nan}, "beta must be > 0"),
        ({"label_smoothing": 0.5}, "label_smoothing must be in .*got 0.5"),
        ({"label_smoothing": -0.1}, "label_smoothing must be in .*got -0.1"),
        ({"nll_coef": -1.0}, "nll_coef must be >= 0, got -1.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        DPO(**settings)
