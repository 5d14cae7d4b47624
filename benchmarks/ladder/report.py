"""What was measured, as tables for a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from .contest import DEFAULT, PLAIN
from .measure import Spread

LEGEND = """\
A step is reference forward, policy forward, backward and AdamW, with the laying out of the batch and the encoding of
its images unless they are said to be cached. Times on a CPU are the process's own. Medians, behind them the range over
the rounds; a ratio is taken round by round, and above 1 a step is faster than TRL's. TRL's head scores response tokens
only, as it does on CUDA. Errors are relative distances from TRL's without checkpointing, in the same type; the gradient
is that of all adapters together.
Floor: the matrix products that a step cannot do without, at the rate of the best product of such sizes, measured
in each round. In the last layer it counts the tokens that are read; "whole" counts all."""


def show(report: dict[str, Any]) -> None:
    """Print the tables, and how to read them."""
    console = Console()
    console.width = max(console.width, 160)
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    console.print(
        f"{report['sizes']}: {machine['device']}, {machine['threads']} thread(s), {versions}", highlight=False
    )
    for measured in report["times"]:
        console.print(_times(measured))
        console.print(_floor(measured))
    if report["memory"]:
        console.print(_memory(report["memory"]))
    console.print(LEGEND, highlight=False)


def _times(measured: dict[str, Any]) -> Table:
    rows = measured["rows"]
    peers = [of for of in (PLAIN, DEFAULT) if any(of in row.get("against", ()) for row in rows)]
    title = f"{measured['title']}, {measured['dtype']}, {measured['num_rounds']} rounds"
    heads = {PLAIN: "TRL no-GC / x", DEFAULT: "TRL default / x"}
    floors = ("x / floor", "x / whole")
    table = _table(title, "step", "s", *(heads[of] for of in peers), *floors, "loss", "off", "gradient off")
    for row in rows:
        if "failed" in row:
            table.add_row(row["name"], row["failed"])
            continue
        against = [_range(row["against"][of], 2) for of in peers]
        above = [f"{row['above_floor']:.2f}", f"{row['above_whole']:.2f}"]
        off = [f"{error:.1e}" for error in row["errors"]]
        table.add_row(row["name"], _range(row["seconds"], 3), *against, *above, f"{row['loss']:.6f}", *off)
    return table


def _floor(measured: dict[str, Any]) -> Table:
    peak = measured["peak"]
    table = _table(f"the floor, at {peak / 1e9:.1f} GFLOP/s", "", "GFLOP", "s", "whole: GFLOP", "s")
    for name, count in measured["floor"].items():
        cells = [text for n in (count, measured["whole"][name]) for text in (f"{n / 1e9:.1f}", f"{n / peak:.3f}")]
        table.add_row(name.replace("_", " "), *cells)
    return table


def _memory(rows: list[dict[str, Any]]) -> Table:
    title = "memory, fp32, two pairs: the peak that a warm step adds"
    table = _table(title, "step", "MiB", "TRL no-GC / x", "TRL default / x")
    known = {row["name"]: row["added_mib"] for row in rows if "failed" not in row}
    for row in rows:
        if "failed" in row:
            table.add_row(row["name"], row["failed"])
            continue
        against = [f"{known[of] / row['added_mib']:.2f}" if of in known else "-" for of in (PLAIN, DEFAULT)]
        table.add_row(row["name"], f"{row['added_mib']:.0f}", *against)
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _range(value: Spread, digits: int) -> str:
    return f"{value.median:.{digits}f} ({value.low:.{digits}f}-{value.high:.{digits}f})"
