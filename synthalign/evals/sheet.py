"""One evaluation's figures in full, for people: those of the whole, and those of its groups side by side."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from synthalign.evals.legend import headlines, legend_of
from synthalign.evals.results import ARROWS, Metrics, interval, is_bound, shown
from synthalign.types import Eval


def sheet(evaluation: Eval, metrics: Metrics) -> list[Table]:
    """Lay out every metric of a report; the bounds of one stand behind it, as its interval.

    Args:
        evaluation: What the metrics come from.
        metrics: Its report, keys without the evaluation's name.

    Returns:
        Tables of groups (splits, types), one cell per group and metric, groups together that share most of their
        metrics; and a table of what is of no group.
    """
    legends = legend_of(evaluation, metrics)
    cells = {
        key: f"{shown(value, key, legends[key])} {interval(key, metrics, legends[key])}".rstrip()
        for key, value in metrics.items()
        if not is_bound(key, metrics)
    }
    names = {key: _last(key) + ARROWS[legends[key].better] for key in cells}
    tables = [_by_group(groups, cells, names) for groups in _alike(cells)]
    if whole := [key for key in cells if "/" not in key and not _said_once(key, cells)]:
        table = Table()
        table.add_column("metric", no_wrap=True)
        table.add_column("value", justify="right", no_wrap=True)
        for key in whole:
            table.add_row(Text(names[key]), Text(cells[key]))
        tables.append(table)
    for table in tables[:1]:
        table.title, table.title_justify = evaluation.name, "left"
    return tables


def width_of(tables: Sequence[Table], console: Console) -> int:
    """Return how many columns the tables need, so that nothing in them is cut off."""
    endless = console.options.update(max_width=10_000)
    return max((Measurement.get(console, endless, table).maximum for table in tables), default=0)


def in_brief(evaluation: Eval, metrics: Metrics) -> str:
    """Write the headline figures that have a better and a worse in one line: those of the whole, if there are any.

    What could not be read is no figure of the model, and left out.
    """
    shows = [
        (key, legend)
        for key, legend in headlines(evaluation, metrics)
        if legend.better and not is_bound(key, metrics) and key != "n_unparsed"
    ]
    of_all = [one for one in shows if one[0].partition("/")[0] in {"mean", one[0]}]
    return ", ".join(
        f"{key} {shown(metrics[key], key, legend)} {interval(key, metrics, legend)}".rstrip()
        for key, legend in of_all or shows
    )


def _said_once(key: str, cells: dict[str, str]) -> bool:
    """Whether the one group that has a metric of the whole says it already, as the only split does of its counts."""
    said = [cell for other, cell in cells.items() if other != key and _last(other) == key]
    return said == [cells[key]]


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _alike(keys: Iterable[str]) -> list[list[str]]:
    """Put groups together that have most of their metrics in common with the first of them."""
    metrics: dict[str, set[str]] = {}
    for key in keys:
        group, _, name = key.rpartition("/")
        if group:
            metrics.setdefault(group, set()).add(name)
    together: list[list[str]] = []
    for group, own in metrics.items():
        for groups in together:
            first = metrics[groups[0]]
            if 2 * len(first & own) > min(len(first), len(own)):
                groups.append(group)
                break
        else:
            together.append([group])
    return together


def _by_group(groups: list[str], cells: dict[str, str], names: dict[str, str]) -> Table:
    """Lay out groups and metrics the way that is narrower: the more numerous are the rows."""
    metrics = {_last(key): name for key, name in names.items() if key.rpartition("/")[0] in groups}
    heads = dict(zip(groups, groups, strict=True))
    across = len(groups) > len(metrics)
    rows, columns = (heads, metrics) if across else (metrics, heads)
    table = Table()
    table.add_column("" if across else "metric", no_wrap=True)
    for head in columns.values():
        table.add_column(Text(head), justify="right", no_wrap=True)
    for row, head in rows.items():
        keys = [f"{row}/{column}" if across else f"{column}/{row}" for column in columns]
        table.add_row(Text(head), *(Text(cells.get(key, "")) for key in keys))
    return table
