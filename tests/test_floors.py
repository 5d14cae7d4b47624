"""The house has floors: a room imports from lower floors only. CONTRIBUTING.md draws what stands here."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGS = {"callbacks", "datamodules", "modules"}
DOOR = {"__main__", "cli", "commands", "planning", "scoring", "sweep", "training"}  # one room in several files
FLOORS = [
    {"types"},  # the nouns, spoken on every floor
    {"tables", "weights", "checkpoints"},
    {"batching"},
    {"vlm", "clients", "store"},
    {"diffusion", "rewards", "pairs", "evals", "world"},
    {"pipeline", "dpo", "prompts", "export", "plan", "pages"},
    PLUGS,
    DOOR,
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
LIGHTNING_ROOMS = PLUGS | {"cli", "planning", "training"}
WORLD_MAY_USE = {"types", "tables", "weights", "store", "vlm"}

FILES = sorted(path for folder in ("synthalign", *PLUGS) for path in (ROOT / folder).rglob("*.py"))


def _module(path: Path) -> list[str]:
    """The dotted name that a file installs as, in parts; a package's ends with ``__init__``."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return parts if parts[0] == "synthalign" else ["synthalign", *parts]


def _imports(path: Path) -> Iterator[list[str]]:
    """Every import of a file, wherever in it: the name in parts, relative ones resolved."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _module(path)[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ([*base, alias.name] for alias in node.names)


def _room(module: list[str]) -> str | None:
    """The room of a module of ours; None for the rest, and for the package itself, which is on no floor."""
    known = module[0] == "synthalign" and len(module) > 1 and module[1] in FLOOR
    return module[1] if known else None


def test_every_room_on_disk_has_a_floor():
    rooms = {_module(path)[1] for path in FILES} - {"__init__"}
    picture = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("### Floors")[2].partition("###")[0]
    assert rooms <= set(FLOOR)
    assert rooms - {"__main__"} <= set(re.findall(r"\w+", picture))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_from_lower_floors_only(path):
    here = _room(_module(path))
    theirs = {room for room in map(_room, _imports(path)) if room and room != here}
    if here is None:  # synthalign/__init__.py opens no room
        assert not theirs
    elif here in DOOR:
        assert theirs <= set(FLOOR)
    else:
        assert {room for room in theirs if FLOOR[room] >= FLOOR[here]} == set()
    if here == "world":
        assert theirs <= WORLD_MAY_USE


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_plugs_and_the_door_know_lightning(path):
    knows = {module[0] for module in _imports(path)} & {"lightning", "pytorch_lightning", "lightning_fabric"}
    assert not knows or _room(_module(path)) in LIGHTNING_ROOMS


def test_the_core_imports_with_lightning_blocked():
    modules = [_module(path) for path in FILES if path.is_relative_to(ROOT / "synthalign")]
    core = sorted({".".join(m).removesuffix(".__init__") for m in modules if m[1] not in DOOR})
    script = f"""
import importlib, sys
sys.modules.update(dict.fromkeys(["lightning", "lightning.pytorch", "lightning_fabric", "pytorch_lightning"]))
for name in {core}:
    importlib.import_module(name)
print(len({core}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(core))]
    assert len(core) > 5
