"""What a checkout holds beside the package: its wheel, scripts, and notes for developers."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

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


@pytest.mark.slow
def test_wheel_and_sdist_are_as_an_index_wants_them(tmp_path: Path) -> None:
    for tool in ("twine", "check_wheel_contents"):
        pytest.importorskip(tool, reason=f"{tool} is installed with the extra dev")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    (sdist,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    for command in (["twine", "check", "--strict", wheel, sdist], ["check_wheel_contents", wheel]):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "src/napari_jrss/py.typed"} <= names


def test_the_conda_recipe_requires_what_pip_does() -> None:
    """Recipes of this form are templates; what they set is one line each."""
    text = (ROOT / "conda" / "recipe" / "meta.yaml").read_text(encoding="utf-8")
    plain = re.sub(r"^{%.*%}$", "", text, flags=re.MULTILINE)
    recipe = yaml.safe_load(re.sub(r"{{.*?}}", "x", plain))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert re.search(r'set version = "(.*)"', text)[1] == project["version"]  # type: ignore[index]
    wanted = {"python": project["requires-python"]}
    for line in project["dependencies"]:
        need = Requirement(line)
        name = {"torch": "pytorch"}.get(need.name.lower(), need.name.lower())
        wanted[name] = str(need.specifier)
    run = dict(each.split(" ", 1) for each in recipe["requirements"]["run"])
    assert run == wanted


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
