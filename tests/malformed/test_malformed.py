"""Whatever is wrong with an input: one line and exit status 2, or a counted drop; nothing half-written or lost."""

import shutil
from pathlib import Path

import pytest
from malformed.examples import KINDS, run
from malformed.judged import FAULT, FINE, LINE, judge
from malformed.world import World, build


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("small"))


def faults(kind: str, world: World, count: int, first: int = 0) -> list[str]:
    """Run examples, and tell those that ended neither in a line nor in a drop nor as if nothing were wrong."""
    found = run(kind, world, count, first)
    assert len(found) == count
    return [f"{done}: {' '.join(argv)}\n{said}" for done, argv, (ending, said) in found if ending == FAULT]


# Fifty; more of the kinds that most often meet a quick command.
COUNTS = {"config": 12, "pairs": 15, "image": 13, "adapter": 5, "checkpoint": 5}


@pytest.mark.parametrize("kind", KINDS)
def test_a_malformed_input_ends_in_one_line_or_a_counted_drop(kind: str, world: World):
    assert faults(kind, world, COUNTS[kind]) == []


@pytest.mark.prove
@pytest.mark.parametrize("kind", KINDS)
def test_five_hundred_malformed_inputs_do(kind: str, world: World):
    assert faults(kind, world, 100, first=1) == []


@pytest.mark.parametrize(
    "argv", [["fit", "--ckpt_path", "last.ckpt"], ["test", "--model.init_args.adapter", "adapter"]]
)
def test_what_is_spoilt_was_fine_before(argv: list[str], world: World, tmp_path: Path):
    shutil.copytree(world.folder, tmp_path / "world")
    assert judge(tmp_path / "world", [argv[0], "--config", "config.yaml", *argv[1:]]).ending == FINE


def test_a_fault_is_noticed(tmp_path: Path):
    (tmp_path / "kept.json").write_text("{}")

    def ending_in(code: str) -> str:
        return judge(tmp_path, [], lambda argv: exec(code)).ending

    assert ending_in("pass") == FINE
    assert ending_in("raise ValueError") == FAULT
    assert ending_in("raise SystemExit(1)") == FAULT
    assert ending_in("raise SystemExit(2)") == FAULT
    assert ending_in("print('synthalign: error: so'); raise SystemExit(2)") == LINE
    assert ending_in("print('synthalign: error: so')") == FAULT
    assert ending_in("print('synthalign: error: so\\nsynthalign: error: so'); raise SystemExit(2)") == FAULT
    assert ending_in("open('half.json', 'w').write('{')") == FAULT
    assert ending_in("open('kept.json', 'w').write('[]')") == FAULT
