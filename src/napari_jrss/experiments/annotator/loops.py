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
    learns: bool = False  # whether the teacher learns from the labels after each accepted case
    # Whether a joint round follows the first training, with the teacher's own predictions of the
    # other cases; a loop that learns without one learns from the first label for as long.
    joint_round: bool = False
    interpolation: bool = True
    region_tool: bool = False  # whether a stroke may correct the region it belongs to
    opinions: bool = False  # whether it chooses where teacher and propagated label differ


OURS = Loop(
    "ours",
    "napari-jrss",
    "program",
    "average",
    learns=True,
    joint_round=True,
    region_tool=True,
    opinions=True,
)

_IN_ORDER = (
    Loop("scratch", "From scratch", "random", "blank"),
    Loop("propagation", "Propagation only", "random", "atlas"),
    Loop("teacher", "Teacher only, random order", "random", "teacher", learns=True),
    Loop(
        "monai_label",
        "As MONAI Label: entropy, brush",
        "entropy",
        "teacher",
        learns=True,
        interpolation=False,
    ),
    OURS,
    replace(OURS, name="no_order", title="without its order", order="random"),
    replace(OURS, name="no_region", title="without the region tool", region_tool=False),
    replace(OURS, name="no_opinions", title="without the two opinions", opinions=False),
    replace(OURS, name="no_interpolation", title="without interpolation", interpolation=False),
    replace(OURS, name="no_atlas", title="without atlas drafts", draft="teacher", opinions=False),
    replace(OURS, name="no_joint", title="without the joint round", joint_round=False),
    replace(
        OURS,
        name="no_teacher",
        title="without a teacher",
        draft="atlas",
        learns=False,
        joint_round=False,
        opinions=False,
    ),
)
LOOPS: Mapping[str, Loop] = MappingProxyType({loop.name: loop for loop in _IN_ORDER})
RIVALS = ("scratch", "propagation", "teacher", "monai_label")
