import pytest
import torch

from synthalign.evals.mmhal.ratings import cell_of, figures, totals, verdict_of
from synthalign.types import Judgement


def test_totals_by_hand():
    judged = [Judgement(6, "", True), Judgement(2, "", True), Judgement(3, "", True), Judgement(0, "?", False)]
    report = totals(judged)
    assert (report["score"], report["hallucination_rate"]) == (11 / 4, 2 / 4)
    assert (report["n"], report["n_unparsed"]) == (4, 1) and report["score_parsed"] == pytest.approx(11 / 3)
    assert totals([]) == {} == figures(torch.zeros(8, dtype=torch.float64))


def test_nothing_but_unread_judgements_is_all_hallucination_and_has_no_mean_of_the_read_ones():
    report = totals([Judgement(0, "?", False)] * 3)
    assert (report["score"], report["hallucination_rate"], report["n_unparsed"]) == (0, 1, 3)
    assert (report["score_low"], report["score_high"], report["hallucination_rate_low"]) == (0, 0, 1)
    assert "score_parsed" not in report


def test_a_verdict_keeps_the_judgement_and_is_counted_by_it():
    verdict = verdict_of(Judgement(3, "so so", True), "x")
    assert verdict == {"correct": True, "judged": True, "score": 3, "parsed": True, "judgement": "so so"}
    assert cell_of(verdict) == 3 and cell_of(verdict_of(Judgement(0, "", False), "x")) == 7
    with pytest.raises(ValueError, match="x: the judge's rating is 9; it must be a whole number from 0 to 6"):
        verdict_of(Judgement(9, "", True), "x")
    with pytest.raises(ValueError, match="judgement 2: the judge's rating is 7"):
        totals([Judgement(1, "", True), Judgement(7, "", True)])
