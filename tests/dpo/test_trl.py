"""What TRL's DPOTrainer computes, we compute. make_trl_logps.py wrote down TRL's numbers, and writes them again."""

import json
from pathlib import Path

import pytest
import torch
from dpo.scoring import logps_of

from synthalign.dpo.batch import collate
from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import adapters_off


@pytest.fixture(scope="module")
def trl():
    return json.loads(Path(__file__).with_name("trl_logps.json").read_text(encoding="utf-8"))


def test_both_score_the_same_tokens(trl, four):
    assert [pair.id for pair in four] == trl["ids"]
    assert [list(pair.chosen) for pair in four] == trl["chosen_token_ids"]
    assert [list(pair.rejected) for pair in four] == trl["rejected_token_ids"]


def test_logps_and_loss_equal_trls(trl, make_policy, chat, four):
    policy, batch = make_policy(), collate(four, chat)
    with torch.no_grad():
        ours = logps_of(policy, batch)
        with adapters_off(policy):
            reference = logps_of(policy, batch)
    loss = DPO(beta=trl["beta"])(ours, reference).loss.mean().item()
    assert ours.chosen.tolist() == pytest.approx(trl["policy_chosen"], rel=1e-4)
    assert ours.rejected.tolist() == pytest.approx(trl["policy_rejected"], rel=1e-4)
    assert reference.chosen.tolist() == pytest.approx(trl["reference_chosen"], rel=1e-4)
    assert reference.rejected.tolist() == pytest.approx(trl["reference_rejected"], rel=1e-4)
    assert loss == pytest.approx(trl["loss"], rel=1e-4)
    assert abs(loss - 0.6931) > 0.005  # so that the adapter, too, was compared
