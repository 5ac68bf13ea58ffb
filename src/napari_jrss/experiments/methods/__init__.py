"""The comparators by name: what each needs and gives, and where its recipe is.

A recipe is a function ``(task: Task) -> Trained`` in a module of this package; nothing of it is
imported before it runs.
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
    recipe
        Its module of this package and the function in it.
    gives
        Which task it solves.
    labels
        ``none``: it never sees a label, and is run once per seed whatever N is.
    least_labelled
        The smallest N with which it can be run.
    needs_unlabelled
        Whether it has nothing to do at N = K.
    starts_from
        Method whose finished run, of the same N, seed and settings, it starts from.
    package
        Module of an optional package that it needs.
    """

    name: str
    title: str
    recipe: str
    gives: Literal["both", "segmentation", "registration"] = "both"
    labels: Literal["none", "some"] = "some"
    least_labelled: int = 1
    needs_unlabelled: bool = False
    starts_from: str | None = None
    package: str | None = None

    @property
    def train(self) -> Callable[[Task], Trained]:
        """The recipe's function."""
        module, _, function = self.recipe.partition(":")
        found = getattr(importlib.import_module(f"{__name__}.{module}"), function)
        return cast("Callable[[Task], Trained]", found)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method("initial", "Initial", "initial:train", gives="registration", labels="none"),
            Method(
                "syn",
                "ANTs SyN",
                "syn:train",
                gives="registration",
                labels="none",
                package="ants",
            ),
            Method(
                "syn_cc",
                "ANTs SyN (CC)",
                "syn:train_cc",
                gives="registration",
                labels="none",
                package="ants",
            ),
            Method(
                "voxelmorph_unsupervised",
                "VoxelMorph, unsupervised",
                "voxelmorph:train",
                gives="registration",
                labels="none",
            ),
            Method(
                "voxelmorph",
                "VoxelMorph",
                "voxelmorph:train",
                gives="registration",
                least_labelled=2,
            ),
            Method("vm_unet", "VM-UNet", "vm_unet:train", gives="segmentation"),
            Method("pdd_net", "PDD-Net", "pdd_net:train", gives="registration", least_labelled=2),
            Method("deep_atlas", "DeepAtlas", "deep_atlas:train"),
            Method("rsegnet", "RSegNet (re-implemented)", "rsegnet:train", least_labelled=2),
            Method("mono", "Mono-Net", "mono:train", least_labelled=0),
            Method(
                "propagation",
                "Label propagation (Mono-Reg)",
                "propagation:train",
                gives="segmentation",
                starts_from="mono",
            ),
            Method(
                "propagation_syn",
                "Label propagation (SyN)",
                "propagation:train_with_syn",
                gives="segmentation",
                package="ants",
            ),
            Method(
                "mono_refined",
                "Mono-Net, refined",
                "refined:train",
                gives="registration",
                starts_from="mono",
            ),
            Method("jrss", "JRSS", "jrss:train", needs_unlabelled=True, starts_from="mono"),
            Method(
                "jrss_refined",
                "JRSS, refined",
                "refined:train",
                gives="registration",
                needs_unlabelled=True,
                starts_from="jrss",
            ),
        )
    }
)
"""All comparators, in the order of the tables."""
