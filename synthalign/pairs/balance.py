"""As many pairs that choose "yes" as pairs that choose "no"."""

from collections.abc import Sequence

from synthalign.pairs.wording import plain
from synthalign.store import seed_of


def surplus(ids: Sequence[str], chosen: Sequence[str], seed: int) -> set[str]:
    """Return the ids to leave out so that as many pairs choose "yes…" as choose "no…".

    A pool in which one of the two is rarely chosen teaches the policy to say the other one, whatever it sees. Pairs
    whose chosen response starts otherwise are left alone; which ones go depends on (seed, id) alone.
    """
    sides: dict[str, list[str]] = {"yes": [], "no": []}
    for pair_id, text in zip(ids, chosen, strict=True):
        first = plain(text).partition(" ")[0]
        if first in sides:
            sides[first].append(pair_id)
    larger = max(sides.values(), key=len)
    excess = abs(len(sides["yes"]) - len(sides["no"]))
    return set(sorted(larger, key=lambda pair_id: seed_of(seed, "surplus", pair_id))[:excess])
