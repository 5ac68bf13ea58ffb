"""The loops that are compared: which case comes next, from which draft, with which tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Loop:
    """One way to work through a cohort."""

    name: str
    title: str
    # Which case comes next: a random one, the one with the largest mean entropy of the teacher's
    # probabilities, or the one that the program suggests.
    order: Literal["random", "entropy", "program"]
    # What a label begins as: empty, voted for by the labelled cases registered to it, predicted by
    # the teacher, or the average of the last two.
    draft: Literal["blank", "atlas", "teacher", "average"]
    # What the teacher learns from after each accepted case: nothing, labels alone, or labels and
    # its own predictions of the other cases (the joint round).
    learns: Literal["", "labels", "joint"] = ""
    interpolation: bool = True
    region_tool: bool = False  # whether a stroke may correct the region it belongs to


OURS = Loop("ours", "napari-jrss", "program", "average", "labels", region_tool=True)

_IN_ORDER = (
    Loop("scratch", "From scratch", "random", "blank"),
    Loop("propagation", "Propagation only", "random", "atlas"),
    Loop("teacher", "Teacher only, random order", "random", "teacher", "labels"),
    Loop(
        "monai_label",
        "As MONAI Label: entropy, brush",
        "entropy",
        "teacher",
        "labels",
        interpolation=False,
    ),
    OURS,
    replace(OURS, name="no_order", title="without its order", order="random"),
    replace(OURS, name="no_region", title="without the region tool", region_tool=False),
    replace(OURS, name="no_interpolation", title="without interpolation", interpolation=False),
    replace(OURS, name="no_atlas", title="without atlas drafts", draft="teacher"),
    replace(OURS, name="no_teacher", title="without a teacher", draft="atlas", learns=""),
    replace(OURS, name="joint", title="with short joint rounds instead", learns="joint"),
)
LOOPS: Mapping[str, Loop] = MappingProxyType({loop.name: loop for loop in _IN_ORDER})
RIVALS = ("scratch", "propagation", "teacher", "monai_label")
