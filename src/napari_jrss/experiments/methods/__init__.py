"""The comparators by name: what each needs and gives, and where its recipe is.

A recipe is a module of this package with a function ``train(task: Task) -> Trained``; nothing
of it is imported before it runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from napari_jrss.experiments.recipe import Task, Trained


@dataclass(frozen=True)
class Method:
    """A comparator.

    Attributes
    ----------
    name, title
        As protocols and tables call it.
    module
        Module of this package that holds its recipe.
    segments, registers
        What it gives.
    labels
        ``none``: it never sees a label, and is run once per seed whatever N is; ``any``: N may
        be 0; ``some``: it needs at least one.
    needs_unlabelled
        Whether it has nothing to do at N = K.
    starts_from
        Method whose finished run, of the same N, seed and settings, it starts from.
    package
        Module of an optional package that it needs.
    """

    name: str
    title: str
    module: str
    segments: bool = False
    registers: bool = False
    labels: Literal["none", "any", "some"] = "some"
    needs_unlabelled: bool = False
    starts_from: str | None = None
    package: str | None = None

    @property
    def train(self) -> Callable[[Task], Trained]:
        """The recipe."""
        module = importlib.import_module(f"{__name__}.{self.module}")
        return cast("Callable[[Task], Trained]", module.train)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method("initial", "Initial", "initial", registers=True, labels="none"),
            Method("mono", "Mono-Net", "mono", segments=True, registers=True, labels="any"),
            Method(
                "jrss",
                "JRSS",
                "jrss",
                segments=True,
                registers=True,
                needs_unlabelled=True,
                starts_from="mono",
            ),
        )
    }
)
"""All comparators, in the order of the tables."""
