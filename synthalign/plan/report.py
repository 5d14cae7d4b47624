"""A plan for people and for programs."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

GIB = 2**30


class Row(NamedTuple):
    """A line of a section."""

    name: str
    value: str
    remark: str = ""


class Section(NamedTuple):
    """Lines under a heading."""

    heading: str
    rows: Sequence[Row]


def size(count: float) -> str:
    """Write bytes in the unit that suits them."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:.0f} B"


def number(count: float) -> str:
    """Write a count."""
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if count >= unit:
            return f"{count / unit:.2f}{name}"
    return f"{count:,.0f}"


def duration(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def show(sections: Iterable[Section], console: Console | None = None) -> None:
    """Print sections as tables."""
    console = console or Console(highlight=False)
    for section in sections:
        table = Table(title=section.heading, title_justify="left", box=None, show_header=False, pad_edge=False)
        table.add_column(min_width=28)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(style="dim")
        for row in section.rows:
            table.add_row(*row)
        console.print(table)
        console.print()


def verdict(peak: int, available: int, reserve: int) -> str:
    """Say whether a peak fits into a device, and by how much."""
    left = available - reserve - peak
    held = f"{size(peak)} of {size(available)}, {size(reserve)} of them kept free"
    return f"fits: {held}, {size(left)} to spare" if left >= 0 else f"does not fit: {held}, {size(-left)} too much"


def plain(value: Any) -> Any:  # noqa: ANN401 - whatever a plan holds
    """Turn named tuples into what JSON can hold."""
    if hasattr(value, "_asdict"):
        return {name: plain(one) for name, one in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value
