"""What was measured, as tables for a terminal."""

from typing import Any

from generation.report import floors, ranged, table  # type: ignore[import-not-found]
from rich.console import Console

from .contest import APART, COPIED, LOOP

AGAINST = {LOOP: "loop / x", COPIED: "copied / x", APART: "splits / x"}

LEGEND = """\
Every contender goes from the same images and texts to texts: processing, tokens and decoding are in its time. Times on
a CPU are the process's own. Medians, behind them the range over the rounds; ratios are taken round by round. "splits":
ours, asked the questions of one split after another.
Answers beside the plain forward, without a cache and one prompt at a time: the share of words that are the same, and
the largest distance of a logit of the first and of the last token, in standard deviations of its row.
Floor: the matrix products that this contender's answers cannot do without, at the rate of the best product of such
sizes, measured in each round; without images' where features are kept, without those of further tokens where the first
is all. "sized" takes those of answers at the rate that a step's products reach. The table of the floor is of all."""


def show(found: dict[str, Any]) -> None:
    """Print the tables, and how to read them."""
    console = Console()
    console.width = max(console.width, 190)
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    console.print(f"{found['sizes']}: {machine['device']}, {machine['threads']} thread(s), {versions}", highlight=False)
    part = "" if found["loop_step"] == 1 else f"; one at a time: every {found['loop_step']}th row, scaled"
    title = f"{found['asked']}, {found['dtype']}, {found['num_rounds']} rounds{part}"
    figures = ["s", *AGAINST.values(), "x / floor", "x / sized", "same words", "logits first", "last"]
    shown = table(title, "contender", *figures)
    for row in found["rows"]:
        checked = found["greedy"][row["name"]]
        shown.add_row(
            row["name"],
            ranged(row["seconds"]),
            *(ranged(row["against"][of]) for of in AGAINST),
            f"{row['above_floor']:.2f}",
            f"{row['above_sized']:.2f}",
            f"{checked['words']:.3%}",
            f"{checked['first']:.0e}",
            f"{checked['last']:.0e}",
        )
    console.print(shown)
    console.print(floors(found))
    console.print(LEGEND, highlight=False)
