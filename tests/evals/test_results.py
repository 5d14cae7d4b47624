import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from rich.console import Console

from synthalign.evals.amber import AMBER
from synthalign.evals.chair import CHAIR
from synthalign.evals.legend import Legend, count_of, headlines
from synthalign.evals.mmhal import MMHal
from synthalign.evals.pope import POPE
from synthalign.evals.results import Results, comparison, settings_of, shown, write_results
from synthalign.types import Judgement


@dataclass(frozen=True, kw_only=True)
class Lenient:
    """A judge to whom everything is worth the same."""

    score: int = 6

    def about(self):
        return {"judge": "lenient"}

    def judge(self, contents, questions, references, answers):
        return [Judgement(self.score, "", True) for _ in answers]

    def release(self):
        pass


@dataclass(frozen=True, kw_only=True)
class Plain:
    """An evaluation that says nothing about how to read it."""

    name: str = "plain"
    max_new_tokens: int = 4

    def questions(self):
        return []

    def about(self):
        return {}

    def verdicts(self, questions, replies):
        return []

    def tally(self, questions, verdicts):
        return torch.zeros(1, dtype=torch.float64)

    def report(self, total):
        return {}


class Told(Plain):
    legend: ClassVar = (Legend("*/good", "high", percent=True), Legend("bad", "low"), Legend("n_lost", "low"))

    def about(self):
        return {"parser": "strict [yes] or [no]", "judge": "nobody"}


def drawn(evals, results, width=80):
    out = io.StringIO()
    Console(file=out, width=width).print(comparison(evals, results))
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


@pytest.mark.parametrize(
    ("value", "key", "percent", "text"),
    [
        (0.9125, "good", True, "91.3 %"),  # 91.25 is exact in binary, and Python's format rounds it to even
        (31.44, "words", False, "31.4"),
        (450.0, "score", False, "450.0"),
        (9.9994, "score", False, "9.999"),
        (-0.0004, "shift", False, "0.000"),
        (-0.0625, "shift", False, "-0.063"),
        (12.5, "n_lost", False, "13"),
        (1e300, "score", False, f"{1e300:.1f}"),
        (float("nan"), "score", False, "NaN"),
    ],
)
def test_a_half_is_rounded_up_and_a_large_number_has_one_decimal(value, key, percent, text):
    assert shown(value, key, Legend("*", percent=percent)) == text


def test_a_change_has_the_decimals_of_what_changed_and_none_has_no_sign():
    before, after = {"told/bad": 9.5, "told/a/good": 0.5}, {"told/bad": 10.25, "told/a/good": 0.50001}
    lines = printed([Told(name="told")], Results("fit", before, after, []))
    assert lines["told/bad"] == ["↓", "9.500", "10.3", "+0.8"]
    assert lines["told/a/good"] == ["↑", "50.0", "%", "50.0", "%", "0.0", "pp"]


def test_changes_for_the_better_are_green_and_for_the_worse_red():
    before, after = {"told/a/good": 0.5, "told/bad": 1.0}, {"told/a/good": 0.6, "told/bad": 1.1}
    change = comparison([Told(name="told")], Results("fit", before, after, [])).columns[3]
    assert [getattr(cell, "style", None) for cell in change.cells] == ["green", "red"]


def test_without_a_before_there_is_one_column_of_values():
    table = comparison([Told(name="told")], Results("validate", None, {"told/bad": 1.5, "told/n": 3.0}, []))
    assert [column.header for column in table.columns] == ["metric", "value", "n"]
    assert [[str(cell) for cell in column.cells] for column in table.columns] == [["told/bad ↓"], ["1.500"], ["3"]]


def test_a_metric_that_was_not_there_before_has_no_change():
    lines = printed([Told(name="told")], Results("test", {}, {"told/bad": 1.5}, []))
    assert lines["told/bad"] == ["↓", "-", "1.500", "-"]


def test_what_the_figures_depend_on_stands_under_the_table():
    table = comparison([Told(name="told"), Plain()], Results("test", None, {"told/bad": 1.5}, []))
    assert str(table.caption).splitlines() == [
        "↑ higher is better   ↓ lower is better",
        "told: parser: strict [yes] or [no]; judge: nobody",
    ]
    said = drawn([Told(name="told")], Results("test", None, {"told/bad": 1.5}, []))
    assert "told: parser: strict [yes] or [no]" in " ".join(said.split())


def test_a_metric_with_bounds_shows_its_interval_in_place_of_rows_for_them():
    low = {"told/bad": 2.08, "told/bad_low": 1.68, "told/bad_high": 2.494, "told/n": 96.0}
    low |= {"told/a/good": 0.5, "told/a/good_low": 0.4004, "told/a/good_high": 0.6}
    high = low | {"told/bad": 3.0, "told/bad_low": 2.5, "told/bad_high": 3.5}
    legend = (Legend("*/good*", percent=True), Legend("bad*"))
    evaluation = type("Bounded", (Told,), {"legend": legend})(name="told")
    table = comparison([evaluation], Results("test", low, high, []))
    assert [[str(cell) for cell in column.cells] for column in table.columns[:3]] == [
        ["told/a/good", "told/bad"],
        ["50.0 %\n[40.0, 60.0]", "2.080\n[1.68, 2.49]"],
        ["50.0 %\n[40.0, 60.0]", "3.000\n[2.50, 3.50]"],
    ]


def test_half_an_interval_is_a_plain_metric():
    evaluation = type("Half", (Told,), {"legend": (Legend("bad*"),)})(name="told")
    table = comparison([evaluation], Results("test", None, {"told/bad": 1.0, "told/bad_low": 0.5}, []))
    assert [str(cell) for cell in table.columns[1].cells] == ["1.000", "0.500"]


def test_results_json_says_whose_they_are_and_what_they_depend_on(tmp_path):
    results = Results("test", None, {"told/x/good": 1.0}, [], policy="llava", adapter="runs/1/adapter", seed=7)
    write_results(tmp_path / "results.json", results, [Told(name="told")])
    written = json.loads((tmp_path / "results.json").read_text())
    assert (written["policy"], written["adapter"], written["seed"]) == ("llava", "runs/1/adapter", 7)
    assert written["evals"]["told"]["about"] == {"parser": "strict [yes] or [no]", "judge": "nobody"}
    assert written["evals"]["told"]["legend"] == {"x/good": {"better": "high", "percent": True, "headline": True}}


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize(
    ("kind", "name"), [(POPE, "pope"), (MMHal, "mmhal"), (CHAIR, "chair_wordnet"), (AMBER, "amber")]
)
def test_no_figure_of_ours_is_cut_off_in_a_narrow_terminal(kind, name, width):
    keys = ["adversarial/accuracy", "mean/yes_ratio", "hallucination_rate", "coverage", "discriminative/precision"]
    metrics = {f"{name}/{key}": 0.5 for key in keys} | {f"{name}/n": 26000.0, f"{name}/n_unparsed": 15220.0}
    metrics |= {f"{name}/hallucination_rate_low": 0.5, f"{name}/hallucination_rate_high": 1.0}
    evaluation = type("Named", (Told,), {"legend": kind.legend})(name=name)
    table = drawn([evaluation], Results("fit", metrics, metrics, []), width)
    assert "26000" in table and "…" not in table


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
