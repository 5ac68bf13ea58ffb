"""Which ids of a label file stand for which class, with names and colours.

Inside a project a label holds class indices 0 to C - 1, where 0 is the background. A
:class:`LabelTable` translates the ids of label files to these; several ids may form one class.
"""

import colorsys
import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from napari_jrss.errors import ScanError

MOST_CLASSES = 255
"""Most classes of a table. A label is a byte, and 255 is :data:`IGNORED`."""

IGNORED = 255
"""Value of a voxel in a label that takes no part in any loss or figure."""

# The seven colours of Okabe and Ito (2008), then Paul Tol's muted scheme: both can be told
# apart with the common kinds of colour blindness.
_COLOURS = (
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"),
    *("#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255"),
)


def default_colour(index: int) -> str:
    """Colour (#rrggbb) of a class by its index; black for the background (index 0)."""
    if index == 0:
        return "#000000"
    if index <= len(_COLOURS):
        return _COLOURS[index - 1]
    # Beyond the palettes: hues a golden ratio apart, in three lightnesses.
    hue = (index * 0.6180339887) % 1
    rgb = colorsys.hls_to_rgb(hue, (0.35, 0.55, 0.75)[index % 3], 0.65)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


class LabelClass(BaseModel):
    """One class of a project: its value in the project's labels, where 0 is the background.

    Its name has at most 200 printable characters, its colour is ``#rrggbb``, and `source_ids`
    are its ids in label files. In files that name their structures, `source_names` stand for it
    too, such as its name before it was renamed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = Field(ge=0)
    name: str = Field(min_length=1, max_length=200)
    colour: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
    source_ids: tuple[Annotated[int, Field(ge=-(2**31), lt=2**31)], ...]
    source_names: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.isprintable():  # a line break, or a terminal's control characters
            raise ValueError(f"the name {name!r} can't be printed")
        return name


class LabelTable(BaseModel):
    """The classes 0 to C - 1 of a project by index; class 0 is the background.

    An id that no class lists is an error, unless `unlisted_is_background`. Voxels of `ignored_id`
    were labelled by nobody, as nnU-Net's ``ignore``: :data:`IGNORED` inside the project.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[LabelClass, ...]
    unlisted_is_background: bool = False
    ignored_id: int | None = None

    @model_validator(mode="after")
    def _partition(self) -> Self:
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

    def index_of(self, name: str) -> int | None:
        """Index of the class that a file's name stands for; None if it stands for none."""
        for names in ((c.name,) for c in self.classes), (c.source_names for c in self.classes):
            for index, known in enumerate(names):
                if name in known:
                    return index
        return None

    def renamed(self, chosen: Mapping[int, tuple[str, str]]) -> Self:
        """Table of some of the classes; those of one name become one class.

        Parameters
        ----------
        chosen
            Name and colour (#rrggbb) of each class to keep, by its index here. What is left out is
            background.

        Raises
        ------
        pydantic.ValidationError
            No class is kept, or a name or colour can't be.
        """
        merged: dict[str, LabelClass] = {}
        for index, (name, colour) in chosen.items():
            old = self.classes[index]
            names = {old.name, *old.source_names} - {name}
            before = merged.get(name)
            merged[name] = LabelClass(
                index=len(merged) + 1 if before is None else before.index,
                name=name,
                colour=colour if before is None else before.colour,
                source_ids=(*(before.source_ids if before else ()), *old.source_ids),
                source_names=tuple(sorted({*(before.source_names if before else ()), *names})),
            )
        return type(self)(
            classes=(self.classes[0], *merged.values()),
            unlisted_is_background=True,
            ignored_id=self.ignored_id,
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a label that holds class indices."""
        return np.dtype(np.uint8)

    @property
    def one_to_one(self) -> bool:
        """Whether each class has exactly one id, so that a file's ids can be restored."""
        return all(len(c.source_ids) == 1 for c in self.classes)

    def to_classes(self, ids: NDArray[Any], unlisted: Counter[str] | None = None) -> NDArray[Any]:
        """Class indices (uint8) of an array of ids, same shape; a ScanError if one is unknown.

        `unlisted` gets the number of voxels of each id that is background since no class lists it.
        """
        pairs = sorted((i, c.index) for c in self.classes for i in c.source_ids)
        if self.ignored_id is not None:
            pairs = sorted([*pairs, (self.ignored_id, IGNORED)])
        known = np.array([i for i, _ in pairs])
        classes = np.array([c for _, c in pairs], self.dtype)
        where = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        listed = known[where] == ids
        if not listed.all():
            unknown, voxels = np.unique(ids[~listed], return_counts=True)
            if unlisted is not None:
                unlisted.update(dict(zip(map(str, unknown), voxels.tolist(), strict=True)))
        if not self.unlisted_is_background and not listed.all():
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            names = ", ".join(str(i) for i in unknown[:5])
            raise ScanError(f"unknown label id {names}{more}")
        return np.where(listed, classes[where], self.dtype.type(0))

    def to_source_ids(self, classes: NDArray[Any]) -> NDArray[Any]:
        """Undo :meth:`to_classes`: a file's ids if :attr:`one_to_one`, else the class indices.

        Ignored voxels get the file's id in either case.
        """
        one = self.one_to_one
        ids = np.array([c.source_ids[0] if one else c.index for c in self.classes])
        if self.ignored_id is not None:
            ids = np.append(ids, np.full(IGNORED + 1 - len(ids), self.ignored_id))
        elif not one:
            return classes
        kind = np.min_scalar_type(int(ids.max())) if ids.min() >= 0 else np.dtype(np.int32)
        return np.asarray(ids.astype(kind)[classes])

    @classmethod
    def of_groups(
        cls, groups: Mapping[str, Iterable[int]], *, unlisted_is_background: bool = False
    ) -> Self:
        """Table of the background (id 0) and of named groups of ids, in the order given."""
        named = {"background": (0,), **groups}
        classes = tuple(
            LabelClass(index=i, name=name, colour=default_colour(i), source_ids=tuple(ids))
            for i, (name, ids) in enumerate(named.items())
        )
        return cls(classes=classes, unlisted_is_background=unlisted_is_background)

    @classmethod
    def from_ids(cls, ids: Iterable[int], names: Mapping[int, str] | None = None) -> Self:
        """One class per id other than 0, in ascending order."""
        names = names or {}
        return cls.of_groups({names.get(i, f"label {i}"): (i,) for i in sorted(set(ids) - {0})})


# Left or right as a word of its own, or as a letter set apart: Left-Caudate, lh.caudate, caudate_L,
# ctx-lh-insula.
_SIDE = re.compile(
    r"(?i)^(?:left|right|lh|rh|l|r)[\W_]+|(?<=[\W_])(?:lh|rh)[\W_]+"
    r"|[\W_]+(?:left|right)(?=[\W_]|$)[)\]]?|[\W_]+[lr]$"
)


def without_side(name: str) -> str:
    """The name of a structure without left or right; the name itself if nothing else is left."""
    return _SIDE.sub("", name).strip() or name


def other_sides(names: Sequence[str]) -> tuple[int, ...] | None:
    """What each class becomes in the mirror: its other side or, without left or right, itself.

    Returns
    -------
    tuple of int or None
        An index for each name; None if a name has a side, and not exactly one other name is its
        other side.
    """
    others = list(range(len(names)))
    sides: dict[str, dict[str, list[int]]] = {}
    for index, name in enumerate(names):
        stem = without_side(name)
        if stem != name:
            side = re.sub(r"[\W_]", "", _SIDE.search(name)[0])[0].lower()  # type: ignore[index]
            sides.setdefault(stem.lower(), {"l": [], "r": []})[side].append(index)
    for pair in sides.values():
        if len(pair["l"]) != 1 or len(pair["r"]) != 1:
            return None
        (left,), (right,) = pair["l"], pair["r"]
        others[left], others[right] = right, left
    return tuple(others)


BACKGROUND = LabelClass(index=0, name="background", colour=default_colour(0), source_ids=(0,))


def _table_rows(name: str) -> list[dict[str, str]]:
    text = (files("napari_jrss") / "tables" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _by_name(rows: Iterable[Mapping[str, str]], id_column: str, name_column: str) -> LabelTable:
    """Table of the classes that a column names, in the order in which they come."""
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(row[name_column], []).append(int(row[id_column]))
    return LabelTable.of_groups(groups)


_LPBA40, _TCIA = _table_rows("lpba40.csv"), _table_rows("tcia.csv")

LPBA40_STRUCTURES = _by_name(_LPBA40, "label", "name")
"""The 56 structures of the LPBA40 delineation protocol (Shattuck et al. 2008)."""

_BY_CLASS = sorted(_LPBA40, key=lambda row: int(row["class_id"]))
LPBA40_GROUPS = _by_name(_BY_CLASS, "label", "class_name")
"""The paper's 5 large regions and 5 structures, which together are all 56."""

TCIA_PUBLISHED = _by_name(_TCIA, "published", "name")
"""The organs of TCIA Pancreas-CT with the ids that Gibson et al. (2018) published."""

TCIA_RENUMBERED = _by_name(_TCIA, "renumbered", "name")
"""The same classes with the ids of the OBELISK code; files of either kind fit one project."""


def tcia_table(ids: set[int]) -> LabelTable:
    """The table of TCIA Pancreas-CT whose ids a label file uses.

    Only the pancreas and the duodenum differ: 11 and 14 as published, 2 and 8 renumbered. It is
    a ScanError if the ids hold none of these four, or some of both conventions.
    """
    published, renumbered = bool(ids & {11, 14}), bool(ids & {2, 8})
    if published == renumbered:
        raise ScanError(
            f"can't tell which ids of TCIA Pancreas-CT the labels {sorted(ids)} follow: the "
            "published ones have 11 and 14, the renumbered ones 2 and 8"
        )
    return TCIA_PUBLISHED if published else TCIA_RENUMBERED
