"""A loss that is no number stops the run and leaves its batch behind; chosen responses that fall are told of, once."""

import json

import pytest
import torch

from synthalign.dpo.guards import FallingChosen, refuse_nonfinite
from synthalign.dpo.losses import DPO
from synthalign.types import PairLogps

IDS = ["a", "b", "ç", "d"]
TOKENS = torch.tensor([3, 4, 5, 6]), torch.tensor([6, 5, 4, 3])
REFERENCE = PairLogps(torch.tensor([-1.0, -2.0, -3.0, -4.0]), torch.tensor([-5.0, -6.0, -7.0, -8.0]), *TOKENS)
POLICY = REFERENCE._replace(chosen=torch.tensor([-1.5, float("nan"), -3.5, float("-inf")], requires_grad=True))
NAMED = "the loss is no finite number at pairs b, d"


def refuse(policy=POLICY, folder=None):
    loss = DPO(beta=0.5)(policy, REFERENCE).loss
    refuse_nonfinite(loss, IDS, policy, REFERENCE, step=7, folder=folder)


def test_finite_losses_pass_and_leave_nothing(tmp_path):
    refuse(REFERENCE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_stops_the_run_and_the_batch_is_saved(tmp_path):
    path = tmp_path / "run" / "nonfinite.json"
    with pytest.raises(FloatingPointError) as stop:
        refuse(folder=path.parent)
    assert str(stop.value) == f"{NAMED}; the batch is in {path}"

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    saved = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constant)
    assert saved.keys() == {"step", "ids", "bad"}
    assert (saved["step"], saved["ids"]) == (7, IDS)
    assert saved["bad"][0] == {
        "id": "b",
        "loss": "nan",
        "policy_chosen": "nan",
        "policy_rejected": -6.0,
        "policy_chosen_tokens": 4,
        "policy_rejected_tokens": 5,
        "reference_chosen": -2.0,
        "reference_rejected": -6.0,
        "reference_chosen_tokens": 4,
        "reference_rejected_tokens": 5,
    }
    assert [row["id"] for row in saved["bad"]] == ["b", "d"]
    assert (saved["bad"][1]["loss"], saved["bad"][1]["policy_chosen"]) == ("inf", "-inf")
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no half of it


def test_without_a_folder_the_pairs_are_named():
    with pytest.raises(FloatingPointError) as stop:
        refuse()
    assert str(stop.value) == NAMED


def test_a_batch_that_cannot_be_saved_does_not_hide_the_pairs(tmp_path):
    (tmp_path / "run").write_text("a file is in the way")
    with pytest.raises(FloatingPointError, match=rf"^{NAMED}; the batch could not be saved: .*run"):
        refuse(folder=tmp_path / "run")


def warnings_of(guard, changes):
    return {step: text for step, change in enumerate(changes) if (text := guard(change, step))}


def test_a_fall_below_the_margin_is_told_once():
    told = warnings_of(FallingChosen(margin_nats=2.0, window=4), [0.0, -1.0, -2.0, -3.0, -2.5, -9.0, -9.0, -9.0])
    assert list(told) == [4]  # (-1 - 2 - 3 - 2.5) / 4 = -2.125; at step 3 the mean was -1.5
    assert told[4].startswith(
        "step 4: the chosen responses' mean log-prob has fallen 2.1 nats below its starting value"
    )
    for word in ("the last 4 steps", "the margin is 2", "nll_coef", "learning rate"):
        assert word in told[4]


@pytest.mark.parametrize(
    "changes",
    [
        [-2.0] * 9,  # at the margin, not below
        [5.0, 9.0, 30.0, 90.0, 90.0],  # rising
        [-9.0, -9.0, -9.0],  # a window is not full
        [0.0, 0.0, 0.0, -7.9, 0.0, 0.0, 0.0, -7.9],  # single batches
    ],
)
def test_no_fall_is_no_warning(changes):
    assert warnings_of(FallingChosen(margin_nats=2.0, window=4), changes) == {}


def test_a_run_that_goes_on_warns_as_it_would_have_and_once():
    changes = [0.0, -1.0, -2.0, -3.0, -2.5, -9.0, -9.0, -9.0]
    whole = warnings_of(FallingChosen(margin_nats=2.0, window=4), changes)
    for step in range(len(changes)):
        before, after = (FallingChosen(margin_nats=2.0, window=4) for _ in range(2))
        told = warnings_of(before, changes[:step])
        after.load_state_dict(before.state_dict())
        later = {place + step: line for place, line in warnings_of(after, changes[step:]).items()}
        assert [*told, *later] == [*whole]


@pytest.mark.parametrize("settings", [{"margin_nats": 0.0}, {"margin_nats": float("nan")}, {"window": 0}])
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(ValueError, match="margin_nats must be > 0 and window >= 1"):
        FallingChosen(**settings)
