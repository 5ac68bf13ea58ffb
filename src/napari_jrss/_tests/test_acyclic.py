"""No modules of the package import each other in a circle, whichever way the import is written."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Set
from graphlib import CycleError, TopologicalSorter

import pytest

from napari_jrss._tests.test_layering import MODULES, dotted, imports


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """The modules of the package that each module imports.

    Imports inside functions and those for type checkers only count, too. An import of a package
    means its ``__init__``, unless it names a module of that package.

    Parameters
    ----------
    sources
        Source text by the module's name below the package, such as ``io.volume``.
    """
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        graph[name] = set()
        for imported in imports(ast.parse(source)):
            parts = imported.split(".")
            if parts[0] != "napari_jrss":
                continue
            # The last part may be a class, and a package stands for its own __init__.
            ends = range(len(parts), 1, -1)
            candidates = [".".join(parts[1:end]) for end in ends]
            found = next((each for each in candidates if each in sources), "__init__")
            graph[name].add(found)
    return graph


def circle(graph: Mapping[str, Set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; [] if none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    sources = {dotted(path): path.read_text(encoding="utf-8") for path in MODULES}
    sources["__init__"] = ""  # it loads the public names when they are first used
    graph = import_graph(sources)
    assert sum(map(len, graph.values())) > len(graph)
    assert circle(graph) == []


@pytest.mark.parametrize(
    "late",
    [
        "from napari_jrss.app.one import One",
        "import napari_jrss.app.one",
        "from napari_jrss.app import one",
        "def work():\n    from napari_jrss.app.one import One",
        "if TYPE_CHECKING:\n    from napari_jrss.app.one import One",
    ],
)
def test_the_check_itself_finds_a_circle(late: str) -> None:
    sources = {
        "app": "",
        "app.one": "from napari_jrss.app.two import Two",
        "app.two": "import numpy\nfrom napari_jrss.app.three import Three",
        "app.three": late,
    }
    assert set(circle(import_graph(sources))) == {"app.one", "app.two", "app.three"}
    assert circle(import_graph({**sources, "app.three": "import numpy"})) == []
