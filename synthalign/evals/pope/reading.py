"""How replies to POPE are read, and what the counts come to.

Source: RUCAIBox/POPE at 3df3ba1, evaluate.py.
"""

import re


def says_yes(reply: str) -> bool:
    """Read a reply as the official script does: the first sentence says ``No``, ``no`` or ``not``, or it means yes.

    An empty reply, ``NO`` and ``No!`` mean yes.
    """
    words = reply.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def strict_answer(reply: str) -> str | None:
    """Read a reply only if it is clear: one of the words yes and no stands in it, and not the other; else None."""
    said = {"yes", "no"} & set(re.findall(r"\w+", reply.lower()))
    return said.pop() if len(said) == 1 else None


def exact_answer(reply: str) -> str | None:
    """Read a reply only if it is nothing but yes or no, in upper or lower case; else None.

    Source: lmms-eval at 2c03baf, tasks/pope/utils.py.
    """
    said = reply.lower().strip()
    return said if said in ("yes", "no") else None


def rates(tp: float, fp: float, tn: float, fn: float) -> dict[str, float]:
    """Return the official metrics, positive meaning yes; 0 where the official script divides by zero."""

    def share(part: float, whole: float) -> float:
        return part / whole if whole else 0.0

    precision, recall = share(tp, tp + fp), share(tp, tp + fn)
    n = tp + fp + tn + fn
    return {
        "accuracy": share(tp + tn, n),
        "precision": precision,
        "recall": recall,
        "f1": share(2 * precision * recall, precision + recall),
        "yes_ratio": share(tp + fp, n),
    }
