"""What was measured, as tables for a terminal."""

from typing import Any

from ladder.measure import Spread  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from .contest import COPIED, LOOP

AGAINST = {LOOP: "loop / x", COPIED: "copied / x"}

LEGEND = """\
Every contender goes from the same images and texts to texts: processing, tokens and decoding are in its time. Times on
a CPU are the process's own. Medians, behind them the range over the rounds; ratios are taken round by round.
Greedy answers beside the plain forward, without a cache and one prompt at a time: the share of words that are the same,
and the largest distance of a logit of the first and of the last token, in standard deviations of its row. Surprise: a
z-score of sampled words under the plain forward's probabilities, about N(0, 1) for a right sampler.
Floor: the matrix products that the answers cannot do without, at the rate of the best product of such sizes, measured
in each round; "sized" takes those of answers at the rate that a step's products reach, fewer rows with all weights. In
the last layer it counts the tokens that are read; "whole" counts all."""


def show(found: dict[str, Any]) -> None:
    """Print the tables, and how to read them."""
    console = Console()
    console.width = max(console.width, 190)
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    console.print(f"{found['sizes']}: {machine['device']}, {machine['threads']} thread(s), {versions}", highlight=False)
    console.print(_times(found))
    console.print(floors(found))
    console.print(LEGEND, highlight=False)
    by_rank, by_order = found["first_words"]
    draws = f"{found['num_draws']} first words of ours, chi-square over bins of words"
    console.print(f"{draws}: p = {by_rank:.3f} by likelihood, {by_order:.3f} by number", highlight=False)


def _times(found: dict[str, Any]) -> Table:
    part = "" if found["loop_step"] == 1 else f"; one at a time: every {found['loop_step']}th row, scaled"
    shown = table(
        f"{found['asked']}, {found['dtype']}, {found['num_rounds']} rounds{part}",
        "contender",
        "s",
        *AGAINST.values(),
        "x / floor",
        "x / sized",
        "same words",
        "logits first",
        "last",
        "surprise",
    )
    for row in found["rows"]:
        greedy = found["greedy"].get(row["name"])
        checked = ["", "", ""]
        if greedy is not None:
            checked = [f"{greedy['words']:.3%}", f"{greedy['first']:.0e}", f"{greedy['last']:.0e}"]
        against = [ranged(row["against"][of]) for of in AGAINST]
        above = [f"{row['above_floor']:.2f}", f"{row['above_sized']:.2f}"]
        shown.add_row(row["name"], ranged(row["seconds"]), *against, *above, *checked, f"{row['surprise']:+.1f}")
    return shown


def floors(found: dict[str, Any]) -> Table:
    """Show what the floor consists of."""
    best, step, needed, whole = found["best"], found["step"], found["floor"], found["whole"]
    title = f"the floor, at {best / 1e9:.1f} GFLOP/s; the products of a step reach {step / 1e9:.1f}"
    shown = table(title, "", "GFLOP", "s", "whole: GFLOP", "s")
    sums = {"together": (sum(needed.values()), sum(whole.values()))}
    for name, counts in ({name: (needed[name], whole[name]) for name in needed} | sums).items():
        shown.add_row(name, *[text for count in counts for text in (f"{count / 1e9:.1f}", f"{count / best:.3f}")])
    return shown


def table(title: str, first: str, *others: str) -> Table:
    """Begin a table: a column of names, then columns of figures."""
    shown = Table(title=title, title_justify="left")
    shown.add_column(first, no_wrap=True)
    for column in others:
        shown.add_column(column, justify="right", no_wrap=True)
    return shown


def ranged(value: Spread) -> str:
    """Write a median with its range."""
    return f"{value.median:.2f} ({value.low:.2f}-{value.high:.2f})"
