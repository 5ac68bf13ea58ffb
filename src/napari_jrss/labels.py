"""Which ids of a label file mean which class, with names and colours.

Inside a project a label holds class indices 0 to C - 1, 0 being the background. A
:class:`LabelTable` leads there from the ids of the files, several of which may make one class.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from napari_jrss.errors import ScanError

# The seven colours of Okabe and Ito (2008), then of Paul Tol's muted scheme: told apart with
# the common kinds of colour blindness.
MOST_CLASSES = 255  # of a byte's 256 values, training marks with the last what takes no part
_COLOURS = (
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"),
    *("#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255"),
)


def default_colour(index: int) -> str:
    """Colour of a class by its index, the same in every project; black for the background."""
    if index == 0:
        return "#000000"
    if index <= len(_COLOURS):
        return _COLOURS[index - 1]
    # Beyond the palettes: hues a golden section apart, lightness in three steps.
    hue = (index * 0.6180339887) % 1
    rgb = colorsys.hls_to_rgb(hue, (0.35, 0.55, 0.75)[index % 3], 0.65)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


class LabelClass(BaseModel):
    """One class: its index in the project, its name and colour, and its ids in the files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = Field(ge=0)
    name: str = Field(min_length=1, max_length=200)
    colour: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
    source_ids: tuple[Annotated[int, Field(ge=-(2**31), lt=2**31)], ...]

    @field_validator("name")
    @classmethod
    def _shown_as_it_is(cls, name: str) -> str:
        if not name.isprintable():  # a line's end, or what steers a terminal
            raise ValueError(f"the name {name!r} can't be printed")
        return name


class LabelTable(BaseModel):
    """The classes of a project, by index.

    Attributes
    ----------
    classes
        Classes 0 to C - 1; class 0 is the background.
    unlisted_is_background
        Whether an id that no class lists is background, or an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[LabelClass, ...]
    unlisted_is_background: bool = False

    @model_validator(mode="after")
    def _partition(self) -> LabelTable:
        if len(self.classes) < 2:
            raise ValueError("a label table needs the background and at least one class")
        if [c.index for c in self.classes] != list(range(len(self.classes))):
            raise ValueError("class indices must be 0, 1, 2, ... in order")
        if len(self.classes) > MOST_CLASSES:
            raise ValueError(
                f"a project can have {MOST_CLASSES - 1} structures, not {len(self.classes) - 1}"
            )
        ids = Counter(i for c in self.classes for i in c.source_ids)
        twice = sorted(i for i, count in ids.items() if count > 1)
        if twice:
            raise ValueError(f"id {twice[0]} belongs to two classes")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the C classes, background first."""
        return tuple(c.name for c in self.classes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a label that holds class indices."""
        return np.dtype(np.uint8)

    @property
    def one_to_one(self) -> bool:
        """Whether every class stands for exactly one id, so that ids can be restored."""
        return not self.unlisted_is_background and all(len(c.source_ids) == 1 for c in self.classes)

    def to_classes(self, ids: NDArray[Any]) -> NDArray[Any]:
        """Class indices of an array of ids, same shape.

        Raises
        ------
        ScanError
            An id that no class lists, unless such ids are background.
        """
        pairs = sorted((i, c.index) for c in self.classes for i in c.source_ids)
        known = np.array([i for i, _ in pairs])
        classes = np.array([c for _, c in pairs], self.dtype)
        where = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        listed = known[where] == ids
        if not self.unlisted_is_background and not listed.all():
            unknown = np.unique(ids[~listed])
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            names = ", ".join(str(i) for i in unknown[:5])
            raise ScanError(f"unknown label id {names}{more}")
        return np.where(listed, classes[where], self.dtype.type(0))

    def to_source_ids(self, classes: NDArray[Any]) -> NDArray[Any]:
        """The files' own ids where each class has exactly one, else the class indices."""
        if not self.one_to_one:
            return classes
        ids = np.array([c.source_ids[0] for c in self.classes])
        kind = np.min_scalar_type(int(ids.max())) if ids.min() >= 0 else np.dtype(np.int32)
        return np.asarray(ids.astype(kind)[classes])

    @classmethod
    def of_groups(
        cls, groups: Mapping[str, Iterable[int]], *, unlisted_is_background: bool = False
    ) -> LabelTable:
        """Table of the background (id 0) and of named classes, in the order given."""
        named = {"background": (0,), **groups}
        return cls(
            classes=tuple(
                LabelClass(
                    index=index, name=name, colour=default_colour(index), source_ids=tuple(ids)
                )
                for index, (name, ids) in enumerate(named.items())
            ),
            unlisted_is_background=unlisted_is_background,
        )

    @classmethod
    def from_ids(cls, ids: Iterable[int], names: Mapping[int, str] | None = None) -> LabelTable:
        """One class per id other than 0, in ascending order."""
        names = names or {}
        return cls.of_groups({names.get(i, f"label {i}"): (i,) for i in sorted(set(ids) - {0})})


BACKGROUND = LabelClass(index=0, name="background", colour=default_colour(0), source_ids=(0,))


def _sides(*pairs: tuple[str, int]) -> dict[str, tuple[int, ...]]:
    return {
        f"{side} {name}": (left + offset,)
        for name, left in pairs
        for offset, side in enumerate(("left", "right"))
    }


# Ids of the LPBA40 delineation protocol (Shattuck et al. 2008): left odd, right even.
LPBA40_STRUCTURES = LabelTable.of_groups(
    {
        **_sides(
            ("superior frontal gyrus", 21),
            ("middle frontal gyrus", 23),
            ("inferior frontal gyrus", 25),
            ("precentral gyrus", 27),
            ("middle orbitofrontal gyrus", 29),
            ("lateral orbitofrontal gyrus", 31),
            ("gyrus rectus", 33),
            ("postcentral gyrus", 41),
            ("superior parietal gyrus", 43),
            ("supramarginal gyrus", 45),
            ("angular gyrus", 47),
            ("precuneus", 49),
            ("superior occipital gyrus", 61),
            ("middle occipital gyrus", 63),
            ("inferior occipital gyrus", 65),
            ("cuneus", 67),
            ("superior temporal gyrus", 81),
            ("middle temporal gyrus", 83),
            ("inferior temporal gyrus", 85),
            ("parahippocampal gyrus", 87),
            ("lingual gyrus", 89),
            ("fusiform gyrus", 91),
            ("insular cortex", 101),
            ("cingulate gyrus", 121),
            ("caudate", 161),
            ("putamen", 163),
            ("hippocampus", 165),
        ),
        "cerebellum": (181,),
        "brainstem": (182,),
    }
)

# The paper's 5 large regions and 5 structures, made of all 56 (docs: the natural partition).
LPBA40_GROUPS = LabelTable.of_groups(
    {
        "frontal": range(21, 35),
        "parietal": range(41, 51),
        "occipital": range(61, 69),
        "temporal": range(81, 93),
        "cingulate": (121, 122),
        "insula": (101, 102),
        "caudate": (161, 162),
        "putamen": (163, 164),
        "hippocampus": (165, 166),
        "cerebellum_brainstem": (181, 182),
    }
)

# Gibson et al.'s organs of TCIA Pancreas-CT as published, and renumbered as the OBELISK code
# has them. The classes are the same, so either kind of files trains the same project.
TCIA_PUBLISHED = LabelTable.of_groups(
    {
        "spleen": (1,),
        "pancreas": (11,),
        "left kidney": (3,),
        "gallbladder": (4,),
        "oesophagus": (5,),
        "liver": (6,),
        "stomach": (7,),
        "duodenum": (14,),
    }
)
TCIA_RENUMBERED = LabelTable.from_ids(range(9), dict(enumerate(TCIA_PUBLISHED.names)))


def tcia_table(ids: set[int]) -> LabelTable:
    """Which of the two conventions a set of ids follows, told by its values.

    Only the pancreas and the duodenum differ: 11 and 14 as published, 2 and 8 renumbered.

    Raises
    ------
    ScanError
        The ids fit neither, both in part, or don't tell.
    """
    published = bool(ids & {11, 14})
    renumbered = bool(ids & {2, 8})
    if published == renumbered:
        raise ScanError(
            f"label ids {sorted(ids)} don't tell which TCIA convention they follow: "
            "the published one has 11 and 14, the renumbered one 2 and 8"
        )
    return TCIA_PUBLISHED if published else TCIA_RENUMBERED
