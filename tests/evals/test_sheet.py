from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from synthalign.evals.legend import Legend
from synthalign.evals.sheet import in_brief, sheet


@dataclass(frozen=True)
class Told:
    name: str = "told"
    legend: ClassVar = (
        Legend("*/good", "high", percent=True),
        Legend("score", "high"),
        Legend("*n_*", "low", headline=False),
    )


TOLD: Any = Told()
"""Of an evaluation only its name and legend are looked at."""


def cells(table):
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_every_metric_is_shown_once_groups_beside_each_other():
    metrics = {"a/good": 0.5, "a/n": 4.0, "b/good": 0.25, "b/n": 8.0, "mean/good": 0.375, "n": 12.0, "n_lost": 1.0}
    groups, whole = sheet(TOLD, metrics)
    assert cells(groups) == [["", "good ↑", "n"], ["a", "50.0 %", "4"], ["b", "25.0 %", "8"], ["mean", "37.5 %", ""]]
    assert cells(whole) == [["metric", "value"], ["n", "12"], ["n_lost ↓", "1"]]
    assert (groups.title, whole.title) == ("told", None)


def test_what_the_only_group_says_is_not_said_again_of_the_whole():
    (table,) = sheet(TOLD, {"a/good": 0.5, "a/n": 4.0, "mean/good": 0.5, "n": 4.0})
    assert cells(table) == [["metric", "a", "mean"], ["good ↑", "50.0 %", "50.0 %"], ["n", "4", ""]]


def test_the_more_numerous_of_groups_and_metrics_are_the_rows():
    (table,) = sheet(TOLD, {"a/good": 0.5, "a/n": 4.0, "a/n_lost": 0.0, "b/good": 1.0, "b/n": 2.0, "b/n_lost": 2.0})
    assert cells(table) == [
        ["metric", "a", "b"],
        ["good ↑", "50.0 %", "100.0 %"],
        ["n", "4", "2"],
        ["n_lost ↓", "0", "2"],
    ]


def test_bounds_stand_behind_what_they_bound():
    (table,) = sheet(TOLD, {"score": 2.08, "score_low": 1.68, "score_high": 2.494})
    assert cells(table) == [["metric", "value"], ["score ↑", "2.080 [1.68, 2.49]"]]
    assert table.title == "told"


def test_groups_of_other_metrics_have_a_table_of_their_own():
    said = {"said/bad": 1.0, "said/words": 2.0, "said/n": 2.0}
    polled = {f"{group}/{key}": 1.0 for group in ("a", "b") for key in ("good", "f1", "n")} | {"mean/good": 1.0}
    tables = sheet(TOLD, said | polled)
    assert [[row[0] for row in cells(table)] for table in tables] == [
        ["metric", "bad", "words", "n"],
        ["metric", "good ↑", "f1", "n"],
    ]
    assert [str(column.header) for column in tables[1].columns] == ["metric", "a", "b", "mean"]
    assert [table.title for table in tables] == ["told", None]


def test_in_brief_the_whole_is_said_or_its_groups_and_never_what_was_left_unread():
    whole = {"a/good": 0.5, "score": 2.0, "n_unparsed": 1.0}
    assert in_brief(TOLD, whole) == "score 2.000"
    told: Any = Told()
    object.__setattr__(told, "legend", (*Told.legend[:2], Legend("n_unparsed", "low")))
    assert in_brief(told, {"a/good": 0.5, "b/good": 0.25, "n_unparsed": 1.0}) == "a/good 50.0 %, b/good 25.0 %"


@pytest.mark.parametrize("metrics", [{}, {"a/b/good": 1.0}])
def test_no_figures_make_no_table_and_a_deep_key_keeps_its_group(metrics):
    assert [cells(table) for table in sheet(TOLD, metrics)] == [
        [["metric", "a/b"], ["good ↑", "100.0 %"]] for _ in metrics
    ]
