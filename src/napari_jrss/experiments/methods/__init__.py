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
    """A comparator."""

    # As protocols and tables call it.
    name: str
    title: str
    recipe: str  # its module of this package and the function in it
    # `none`: it never sees a label, and is run once per seed whatever N is.
    labels: Literal["none", "some"] = "some"
    least_labelled: int = 1  # the smallest N with which it can be run
    needs_unlabelled: bool = False  # whether it has nothing to do at N = K
    # Method whose finished run, of the same N, seed and settings, it starts from.
    starts_from: str | None = None
    package: str | None = None  # module of an optional package that it needs

    @property
    def train(self) -> Callable[[Task], Trained]:
        """The recipe's function."""
        module, _, function = self.recipe.partition(":")
        found = getattr(importlib.import_module(f"{__name__}.{module}"), function)
        return cast("Callable[[Task], Trained]", found)


_IN_ORDER = (
    Method("initial", "Initial", "syn:train_initial", labels="none"),
    Method("syn", "ANTs SyN", "syn:train", labels="none", package="ants"),
    Method("syn_cc", "ANTs SyN (CC)", "syn:train_cc", labels="none", package="ants"),
    Method(
        "voxelmorph_unsupervised", "VoxelMorph, unsupervised", "voxelmorph:train", labels="none"
    ),
    Method("voxelmorph", "VoxelMorph", "voxelmorph:train", least_labelled=2),
    Method("vm_unet", "VM-UNet", "voxelmorph:train_vm_unet"),
    Method("pdd_net", "PDD-Net", "pdd_net:train", least_labelled=2),
    Method("deep_atlas", "DeepAtlas", "deep_atlas:train"),
    Method("rsegnet", "RSegNet (re-implemented)", "rsegnet:train", least_labelled=2),
    Method("mono", "Mono-Net", "jrss:train_mono", least_labelled=0),
    Method("propagation", "Label propagation (Mono-Reg)", "propagation:train", starts_from="mono"),
    Method(
        "propagation_syn", "Label propagation (SyN)", "propagation:train_with_syn", package="ants"
    ),
    Method("mono_refined", "Mono-Net, refined", "jrss:train_refined", starts_from="mono"),
    Method(
        "mono_two_levels",
        "Mono-Net, refined in two levels",
        "jrss:train_two_levels",
        starts_from="mono",
    ),
    Method("jrss", "JRSS", "jrss:train", needs_unlabelled=True, starts_from="mono"),
    Method(
        "jrss_drafts",
        "JRSS, averaged with registered labels",
        "propagation:train_beside_teacher",
        needs_unlabelled=True,
        starts_from="jrss",
    ),
    Method(
        "jrss_refined",
        "JRSS, refined",
        "jrss:train_refined",
        needs_unlabelled=True,
        starts_from="jrss",
    ),
    Method(
        "jrss_two_levels",
        "JRSS, refined in two levels",
        "jrss:train_two_levels",
        needs_unlabelled=True,
        starts_from="jrss",
    ),
)
METHODS: Mapping[str, Method] = MappingProxyType({each.name: each for each in _IN_ORDER})
"""All comparators, in the order of the tables."""
