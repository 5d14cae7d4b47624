import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from rich.console import Console

from synthalign.evals.captions import Captions
from synthalign.evals.legend import Legend, count_of, headlines
from synthalign.evals.mmhal import MMHal
from synthalign.evals.pope import POPE
from synthalign.evals.results import Results, comparison, settings_of, write_results
from synthalign.types import Judgement


@dataclass(frozen=True, kw_only=True)
class Lenient:
    """A judge to whom everything is worth the same."""

    score: int = 6

    def judge(self, contents, questions, references, answers):
        return [Judgement(self.score, "", True) for _ in answers]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """An evaluation that says nothing about how to read it."""

    name: str = "plain"
    max_new_tokens: int = 4

    def questions(self):
        return []

    def verdicts(self, questions, replies):
        return []

    def tally(self, questions, verdicts):
        return torch.zeros(1, dtype=torch.float64)

    def report(self, total):
        return {}


class Told(Plain):
    legend: ClassVar = (Legend("*/good", "high", percent=True), Legend("bad", "low"), Legend("n_lost", "low"))


def drawn(evals, results):
    out = io.StringIO()
    Console(file=out, width=80).print(comparison(evals, results))
    return out.getvalue()


def printed(evals, results):
    lines = drawn(evals, results).splitlines()
    return {line.split()[1]: line.replace("│", "").split()[1:] for line in lines if line.startswith("│")}


def test_headlines_come_in_the_legends_order_and_only_they():
    metrics = {"bad": 1.0, "a/good": 0.5, "other": 2.0, "b/good": 0.25, "n": 4.0}
    assert [key for key, _ in headlines(Told(), metrics)] == ["a/good", "b/good", "bad"]
    assert [key for key, _ in headlines(Plain(), metrics)] == list(metrics)


def test_a_metric_stands_on_the_n_of_its_group_or_of_the_whole():
    metrics = {"n": 9.0, "a/n": 4.0, "a/good": 1.0, "b/good": 1.0, "bad": 1.0}
    assert (count_of("a/good", metrics), count_of("b/good", metrics), count_of("bad", metrics)) == (4, 9, 9)
    assert count_of("bad", {"bad": 1.0}) is None


def test_the_table_shows_percentages_changes_and_n():
    before = {"told/a/good": 0.694, "told/bad": 1.5, "told/n_lost": 7.0}
    after = {"told/a/good": 0.882, "told/bad": 1.25, "told/n_lost": 2.0, "told/n": 40.0, "told/a/n": 12.0}
    lines = printed([Told(name="told")], Results("fit", before, after, []))
    assert lines["told/a/good"] == ["↑", "69.4", "%", "88.2", "%", "+18.8", "pp", "12"]
    assert lines["told/bad"] == ["↓", "1.500", "1.250", "-0.250", "40"]
    assert lines["told/n_lost"] == ["↓", "7", "2", "-5", "40"]


def test_changes_for_the_better_are_green_and_for_the_worse_red():
    before, after = {"told/a/good": 0.5, "told/bad": 1.0}, {"told/a/good": 0.6, "told/bad": 1.1}
    change = comparison([Told(name="told")], Results("fit", before, after, [])).columns[3]
    assert [getattr(cell, "style", None) for cell in change.cells] == ["green", "red"]


def test_without_a_before_there_is_one_column_of_values():
    table = comparison([Told(name="told")], Results("validate", None, {"told/bad": 1.5, "told/n": 3.0}, []))
    assert [column.header for column in table.columns] == ["metric", "value", "n"]
    assert [list(column.cells) for column in table.columns] == [["told/bad ↓"], ["1.500"], ["3"]]


def test_a_metric_that_was_not_there_before_has_no_change():
    lines = printed([Told(name="told")], Results("test", {}, {"told/bad": 1.5}, []))
    assert lines["told/bad"] == ["↓", "-", "1.500", "-"]


@pytest.mark.parametrize("kind", [POPE, MMHal, Captions])
def test_every_headline_of_ours_fits_a_narrow_terminal(kind):
    keys = ["adversarial/accuracy", "mean/yes_ratio", "hallucination_rate", "coverage", "n_unparsed"]
    metrics = {f"{kind.name}/{key}": 0.5 for key in keys} | {f"{kind.name}/n": 26000.0}
    table = drawn([kind.__new__(kind)], Results("fit", metrics, metrics, []))
    assert kind.name in table and "…" not in table


def test_settings_are_those_of_a_config():
    mmhal = MMHal(file=Path("a.json"), images=Path("images"), judge=Lenient(score=4))
    settings = settings_of(mmhal)
    assert settings["class_path"] == "synthalign.evals.mmhal.MMHal"
    assert settings["init_args"]["file"] == "a.json"
    assert settings["init_args"]["judge"]["init_args"] == {"score": 4}


def test_results_json_holds_metrics_settings_and_counts(tmp_path):
    history = [
        {"epoch": 0, "step": 0, "metrics": {"plain/x": 1.0}},
        {"epoch": 1, "step": 8, "metrics": {"plain/x": 2.0}},
    ]
    write_results(tmp_path / "results.json", Results("fit", {"plain/x": 1.0}, {"plain/x": 2.0}, history), [Plain()])
    written = json.loads((tmp_path / "results.json").read_text())
    assert (written["stage"], written["before"], written["after"]) == ("fit", {"plain/x": 1.0}, {"plain/x": 2.0})
    assert written["history"] == history
    assert written["evals"]["plain"]["init_args"] == {"name": "plain", "max_new_tokens": 4}
    assert (written["evals"]["plain"]["questions"], written["evals"]["plain"]["distinct_questions"]) == (0, 0)
