"""What pip installs is the package, all of it, and nothing beside it."""

import ast
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import synthalign

ROOT = Path(__file__).parents[1]
PLUGS = ("callbacks", "datamodules", "modules")
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = CONFIG["project"]
BROUGHT_BY_TORCH = {"triton"}
"""Only a build of torch for CUDA needs it, and brings the one version that fits: a pin would contradict it."""
SKIP = shutil.ignore_patterns("__pycache__", "*.egg-info")


def _declared(*extras: str) -> dict[str, Requirement]:
    """Requirements of the base set and of some extras, by normalized name."""
    lines = [*PROJECT["dependencies"], *(line for x in extras for line in PROJECT["optional-dependencies"][x])]
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


def _pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _on_disk(pattern: str) -> set[str]:
    """Files of the package's folders, by the path they install to."""
    found = [path for folder in ("synthalign", *PLUGS) for path in (ROOT / folder).rglob(pattern) if path.is_file()]
    paths = [path.relative_to(ROOT) for path in found]
    return {path.as_posix() if path.parts[0] == "synthalign" else f"synthalign/{path.as_posix()}" for path in paths}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files in a wheel made from the source archive, which so proves whole; a copy keeps ``build/`` out of the tree."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for folder in ("synthalign", *PLUGS):
        shutil.copytree(ROOT / folder, source / folder, ignore=SKIP)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    archive = built / _build("sdist", source, built)
    with tarfile.open(archive) as tar:
        tar.extractall(built, filter="data")
    wheel = built / _build("wheel", built / archive.name.removesuffix(".tar.gz"), built)
    with zipfile.ZipFile(wheel) as names:
        return names.namelist()


def _build(kind: str, source: Path, out: Path) -> str:
    script = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_packages_list_names_every_folder_with_an_init():
    folders = {Path(path).parent.as_posix().replace("/", ".") for path in _on_disk("__init__.py")}
    assert CONFIG["tool"]["setuptools"]["packages"] == sorted(folders)


def test_every_folder_with_code_has_an_init():
    assert {Path(path).parent for path in _on_disk("*.py")} == {Path(path).parent for path in _on_disk("__init__.py")}


def test_the_wheel_puts_nothing_but_synthalign_into_site_packages(wheel_names):
    tops = {name.split("/")[0] for name in wheel_names}
    assert tops == {"synthalign", f"synthalign-{synthalign.__version__}.dist-info"}


def test_the_wheel_holds_every_source_file(wheel_names):
    assert {name for name in wheel_names if name.endswith(".py")} == _on_disk("*.py")


def test_the_wheel_holds_the_worlds_weights(wheel_names):
    weights = {path for path in _on_disk("*") if path.startswith("synthalign/world/weights/")}
    assert any(path.endswith(".safetensors") for path in weights)
    assert {name for name in wheel_names if name.startswith("synthalign/world/weights/")} == weights


def test_the_wheel_holds_the_licence(wheel_names):
    assert f"synthalign-{synthalign.__version__}.dist-info/licenses/LICENSE" in wheel_names


def test_the_plugs_import_from_any_folder(tmp_path):
    script = "import synthalign.callbacks, synthalign.datamodules, synthalign.modules as m; print(m.__name__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "synthalign.modules", done.stderr


def test_pins_are_exact_sorted_and_cover_every_declared_dependency():
    torch, *rest = _pins()
    assert torch.name == "torch"  # first: the build it picks decides what fits the others
    names = [canonicalize_name(pin.name) for pin in rest]
    assert names == sorted(set(names))
    assert all(str(pin.specifier).startswith("==") for pin in rest)
    assert set(_declared(*PROJECT["optional-dependencies"])) <= {"torch", *names} | BROUGHT_BY_TORCH


def test_every_pin_fits_its_range():
    declared = _declared(*PROJECT["optional-dependencies"])
    for pin in _pins():
        version = str(pin.specifier).removeprefix("==")
        wanted = declared.get(canonicalize_name(pin.name))
        assert wanted is None or wanted.specifier.contains(version), f"{wanted} does not allow {version}"


@pytest.mark.parametrize(
    ("folders", "extras"),
    [(("synthalign", *PLUGS), ("chair",)), (("tests",), ("dev", "bench")), (("benchmarks",), ("dev", "bench"))],
    ids=["package", "tests", "benchmarks"],
)
def test_what_is_imported_is_declared(folders, extras):
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    paths = [path for path in paths if not path.name.startswith("make_")]  # these say themselves what they need
    ours = {"synthalign", *PLUGS, *folders} | {path.stem for path in paths} | {path.parent.name for path in paths}
    imported = {name for path in paths for name in _top_level_imports(path)} - ours - set(sys.stdlib_module_names)
    owners = importlib.metadata.packages_distributions()
    wanted = {canonicalize_name((owners.get(name) or [name])[0]) for name in imported}
    assert wanted - set(_declared(*extras)) <= BROUGHT_BY_TORCH


def _top_level_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names
