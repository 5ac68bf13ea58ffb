"""The layers: a module imports only from layers below its own, and no files form a circle."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import napari_jrss

PACKAGE = Path(napari_jrss.__file__).parent

# The first part of a module's name below the package decides its layer.
LAYERS = {
    "__init__": 0,
    "errors": 1,
    "geometry": 1,
    "snapshot": 2,
    "config": 1,
    "processes": 2,
    "threads": 1,
    "pool": 3,
    "cluster": 4,
    "losses": 1,
    "metrics": 3,
    "progress_bar": 1,
    "times": 1,
    "labels": 2,
    "logs": 2,
    "io": 3,
    "preprocess": 4,
    "networks": 4,
    "project": 5,
    "inference": 5,
    "training": 6,
    "sample_data": 6,
    "real_sample": 6,
    "doctor": 6,
    "app": 7,
    "experiments": 8,
    "cli": 9,
    "widgets": 9,
    "__main__": 10,
}
WINDOW = {"napari", "qtpy", "PyQt5", "PyQt6", "PySide2", "PySide6", "magicgui", "superqt"}
TRAINING = {"torch", "monai", "lightning_fabric"}
# These start at once: not even SimpleITK, napari or Qt.
LIGHT = ("__init__", "config", "cli", "doctor")
# These neither train nor infer before they are asked to; worker processes import them.
WITHOUT_TORCH = (
    "sample_data",
    "errors",
    "geometry",
    "labels",
    "io.volume",
    "io.read",
    "io.layouts",
    "preprocess.case_store",
    "project",
    "app.session",
)

MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if "_tests" not in path.relative_to(PACKAGE).parts
)


def dotted(path: Path) -> str:
    """Name of a module below the package, such as ``io.volume``."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


def imports(tree: ast.Module, relative: bool = False) -> Iterator[str]:
    """Full names of all that a module imports, wherever in the module it does so.

    Relative imports are an error unless `relative`; then they are passed over.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not (relative and node.level):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(name: str, tree: ast.Module) -> list[str]:
    """What a module imports although its layer may not."""
    part = name.split(".")[0]
    if part == "__init__":  # it loads the public names late, and names them for type checkers
        tree = ast.Module([node for node in tree.body if not isinstance(node, ast.If)], [])
    found = []
    for imported in imports(tree):
        top, *rest = imported.split(".")
        if top in WINDOW and part != "widgets":
            found.append(f"{name} imports {top}; only widgets/ may")
        if top != "napari_jrss" or not rest:
            continue
        other = rest[0] if rest[0] in LAYERS else "__init__"
        if other != part and LAYERS[other] >= LAYERS[part]:
            found.append(f"{name} (layer {LAYERS[part]}) imports {imported} ({LAYERS[other]})")
    return found


def test_a_module_imports_only_from_layers_below() -> None:
    trees = {dotted(path): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
    without = {name for name in trees if name.split(".")[0] not in LAYERS}
    assert without == set(), "these have no layer: add them to LAYERS"
    assert [each for name, tree in trees.items() for each in violations(name, tree)] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("project.project", "from napari_jrss.training.loop import fit"),
        ("training.loop", "import napari_jrss.app.session"),
        ("training.loop", "def late():\n    from napari_jrss import app"),
        ("losses", "from napari_jrss.metrics import dice"),
        ("io.volume", "from qtpy.QtWidgets import QWidget"),
        ("cli", "import napari"),
    ],
)
def test_the_check_itself_finds_a_violation(name: str, source: str) -> None:
    assert len(violations(name, ast.parse(source))) == 1


@cache
def declared(*extras: str) -> set[str]:
    """Distributions that an installation with some extras ("" for none) asks for."""
    requirements = map(Requirement, metadata.requires("napari-jrss") or ())
    return {
        canonicalize_name(each.name)
        for each in requirements
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
    }


@pytest.fixture(scope="module")
def provided_by() -> dict[str, list[str]]:
    """Distributions by what they are imported as, also what isn't installed everywhere."""
    absent = {
        **{"ants": ["antspyx"], "picsl_greedy": ["picsl-greedy"], "convexAdam": ["convexadam"]},
        "nnInteractive": ["nninteractive-client"],
    }
    return {**absent, **metadata.packages_distributions()}


# Its own pin of SimpleITK forbids an extra: it is installed by hand.
BY_HAND = {"fireants"}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        (PACKAGE, ("", "ants", "greedy", "convexadam", "prompts", "sample")),
        (PACKAGE / "experiments", ("experiments", "ants")),
        (PACKAGE / "_tests", ("test", "experiments", "ants", "prompts")),
    ],
    ids=["core", "experiments", "tests"],
)
def test_every_imported_package_is_declared(
    folder: Path, extras: tuple[str, ...], provided_by: dict[str, list[str]]
) -> None:
    others = {"_tests", "widgets"} | ({"experiments"} if folder == PACKAGE else set())
    for path in sorted(folder.rglob("*.py")):
        if others & set(path.relative_to(folder).parts):
            continue
        for imported in imports(ast.parse(path.read_text(encoding="utf-8")), relative=True):
            top = imported.split(".")[0]
            if top in sys.stdlib_module_names or top == "napari_jrss" or top in BY_HAND:
                continue
            distributions = set(map(canonicalize_name, provided_by.get(top, [top])))
            assert distributions & declared(*extras), f"{path.name} imports {top}: declare it"


def first_import(names: Iterable[str], unwanted: set[str]) -> str:
    """Import modules one by one in a fresh interpreter; the first that brings a package along."""
    modules = ["napari_jrss" if name == "__init__" else f"napari_jrss.{name}" for name in names]
    probe = (
        "import importlib, sys\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        f"    found = {unwanted} & sys.modules.keys()\n"
        "    if found: sys.exit(f'{name} imports {found}')\n"
    )
    return subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stderr


@pytest.mark.slow
def test_a_light_module_imports_nothing_heavy() -> None:
    assert first_import(LIGHT, TRAINING | WINDOW | {"SimpleITK"}) == ""


@pytest.mark.slow
def test_what_neither_trains_nor_infers_does_not_import_torch() -> None:
    prefixes = tuple(f"{each}." for each in WITHOUT_TORCH)
    names = [name for name in map(dotted, MODULES) if f"{name}.".startswith(prefixes)]
    assert len(names) > 20
    assert first_import(names, TRAINING | WINDOW) == ""


@pytest.mark.slow
def test_the_check_itself_finds_torch() -> None:
    assert "napari_jrss.losses imports {'torch'}" in first_import(["errors", "losses"], {"torch"})


@pytest.mark.slow
def test_help_takes_under_a_second() -> None:
    command = Path(sys.executable).with_name("napari-jrss")
    before = os.times()
    result = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    after = os.times()
    assert "Usage" in result.stdout
    # Computing time of the child, whatever else the machine is busy with.
    spent = after.children_user + after.children_system
    assert spent - (before.children_user + before.children_system) < 1
