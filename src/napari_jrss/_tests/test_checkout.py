"""What a checkout holds beside the package: its wheel, scripts, and notes for developers."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

import napari_jrss

PACKAGE = Path(napari_jrss.__file__).parent
ROOT = PACKAGE.parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the package is installed without its checkout", allow_module_level=True)

SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").glob("*.py")])


def test_the_wheel_holds_all_of_the_package_but_its_tests(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as opened:
        packed = {name for name in opened.namelist() if name.startswith("napari_jrss/")}
    sources = {
        f"napari_jrss/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and not {"_tests", "__pycache__"} & set(path.parts)
    }
    assert packed == sources
    assert {"napari_jrss/py.typed", "napari_jrss/napari.yaml"} < packed


def imported_names(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of what a script imports from the package, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("napari_jrss"):
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_script_imports_what_there_is_and_nothing_of_the_tests(path: Path) -> None:
    for module, name in imported_names(path):
        assert "_tests" not in module
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")


def test_contributing_names_files_that_there_are() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)*\w+\.(?:py|yaml|toml|yml))`", text)
    invented = {"io/yourformat.py", "widgets/tabs/yourtab.py"}
    workflows = ROOT / ".github" / "workflows"
    missing = [
        name
        for name in set(named) - invented
        if not any((folder / name).is_file() for folder in (PACKAGE, ROOT, workflows))
    ]
    assert missing == []
    linked = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert [link for link in linked if not (ROOT / link).exists()] == []


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
