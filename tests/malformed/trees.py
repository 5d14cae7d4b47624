"""Damage to a value of JSON or YAML: one place of it, whatever it is, becomes something else."""

import copy
from typing import Any

from malformed.torn import Draw, integer, one_of

# No number is both large and one that a machine could try to make room for: what is asked for is refused, or absurd.
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    3,
    2**63,
    -(2**64),
    10**400,
    0.5,
    -1.5,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "\0",
    "nan",
    "1e3",
    "ümlaut ☃ 漢字",
    "half \ud800",
    "{placeholder}",
    "${nowhere}",
    "../../outside",
    "x" * 5000,
    "<image><image>",
    [],
    [[]],
    [None],
    [1, "two", 3.0],
    {},
    {"": None},
    {"class_path": "os.system", "init_args": {"command": "true"}},
    {"class_path": "synthalign.nowhere.Nothing"},
    {"class_path": "synthalign.pairs.Identical", "init_args": {"unknown": 1}},
    {"init_args": {}},
]
WAYS = ("another value", "left out", "renamed", "twice", "deeper", "moved", "doubled")


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """Name every place inside a value by the keys that lead to it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [one for key, below in inner for one in ((*at, key), *places(below, (*at, key)))]


def inside(value: Any, at: tuple) -> Any:
    """Return what stands at a place."""
    for key in at:
        value = value[key]
    return value


def spoil(value: Any, draw: Draw, ways: tuple[str, ...] = WAYS) -> tuple[Any, str]:
    """Return a copy with one place spoilt, and what was done to which."""
    value = copy.deepcopy(value)
    at = one_of(draw, places(value))
    way = one_of(draw, ways)
    around, key = inside(value, at[:-1]), at[-1]
    if way == "another value":
        around[key] = copy.deepcopy(one_of(draw, VALUES))
    elif way == "left out":
        del around[key]
    elif way == "renamed" and isinstance(around, dict):
        around[f"{key}_"] = around.pop(key)
    elif way == "twice" and isinstance(around, list):
        around.insert(key, copy.deepcopy(around[key]))
    elif way == "deeper":
        for _ in range(integer(draw, 1, 40)):
            around[key] = [around[key]]
    elif way == "moved":
        around[key] = copy.deepcopy(inside(value, one_of(draw, places(value))))
    elif isinstance(around[key], str):
        way, around[key] = "doubled", around[key] * 2
    else:
        way, around[key] = "as text", str(around[key])
    return value, f"{way}: {'.'.join(map(str, at))}"
