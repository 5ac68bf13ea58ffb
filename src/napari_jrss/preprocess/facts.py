"""What a plan needs to know of a cohort: sizes, intensities, and how large the structures are."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Self, TypeVar

import numpy as np

from napari_jrss.errors import ScanError
from napari_jrss.geometry import (
    Matrix,
    Shape,
    Triple,
    map_points,
    spacing_mm,
    to_upright_lps,
    voxel_ml,
)
from napari_jrss.io.found import FoundCase
from napari_jrss.io.label_files import read_classes
from napari_jrss.io.read import read_header, read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.labels import IGNORED, LabelTable
from napari_jrss.pool import Workers, in_processes
from napari_jrss.preprocess.padding import without_padding
from napari_jrss.preprocess.pipeline import foreground_box

Item = TypeVar("Item")

# Scans whose voxels are read, besides those with a label: more tell no more.
_READ = 8
# A cohort of fewer voxels is read faster than processes start.
_SMALL_COHORT = 20_000_000
# The values of a CT, in HU: air is its lowest, and something is at least as dense as this.
_AIR_HU, _DENSE_HU = (-1100, -900), 200
# Values of a CT's structures that count; nnU-Net clips at the same percentiles (Isensee 2021).
_WINDOW_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class ScanFacts:
    """What is known of one scan.

    Attributes
    ----------
    case_id
        Its case.
    shape, spacing_mm
        Of the scan turned upright to LPS, (z, y, x).
    foreground_mm
        Extent (z, y, x) of the head or the body; None where the voxels weren't read.
    label_inside
        Fraction of the label's voxels in the box around the head or the body.
    ct
        Whether its intensities are those of a CT; None where they weren't read.
    window
        Percentiles 0.5 and 99.5 of the intensities in a CT's structures.
    structures_ml
        Volume of each structure in its label, by class index.
    """

    case_id: str
    shape: Shape
    spacing_mm: Triple
    foreground_mm: Triple | None = None
    label_inside: float | None = None
    ct: bool | None = None
    window: tuple[float, float] | None = None
    structures_ml: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, case_id: str, affine: Matrix, shape: Shape) -> Self:
        """What the header tells: an affine to LPS mm, and a shape (z, y, x)."""
        turn, upright = to_upright_lps(affine, shape)
        return cls(case_id, upright, spacing_mm(affine @ turn))

    @property
    def extent_mm(self) -> Triple:
        """Extent (z, y, x)."""
        z, y, x = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return z, y, x


def scan_facts(
    cases: Sequence[FoundCase], table: LabelTable | None, workers: Workers = None
) -> Generator[ScanFacts | None]:
    """Look at each scan of a cohort; None for one that can't be read, which the import reports.

    All headers and all labels are read, and the voxels of at most eight scans beside those.

    Parameters
    ----------
    cases
        The cohort.
    table
        The classes; None where no scan has a label.
    workers
        Processes; None: one per core.
    """
    read = set(some_of([case.case_id for case in cases]))
    one = partial(_look_at, table=table, read=read)
    voxels = 0
    for case in cases:
        with suppress(ScanError):
            voxels += math.prod(read_header(case.image).shape)
    yield from gather(one, cases, voxels, workers)


def some_of(names: Sequence[str]) -> Sequence[str]:
    """At most eight of them, from the whole list."""
    return names[:: max(1, math.ceil(len(names) / _READ))]


def gather(
    one: Callable[[Item], ScanFacts | None],
    items: Sequence[Item],
    voxels: int,
    workers: Workers = None,
) -> Generator[ScanFacts | None]:
    """Call a function on each scan, in processes if they have many voxels together."""
    if voxels <= _SMALL_COHORT:
        yield from map(one, items)
        return
    for _, found in in_processes(one, items, workers):
        yield None if isinstance(found, Exception) else found


def _look_at(case: FoundCase, *, table: LabelTable | None, read: set[str]) -> ScanFacts | None:
    try:
        header = read_header(case.image)
        about = ScanFacts.of(case.case_id, header.affine, header.shape[::-1])
        label = None
        if case.label is not None and table is not None:
            label = _label(case, table)
        if case.case_id not in read and label is None:
            return about
        return facts_of(about, without_padding(read_volume(case.image)), label)
    except (ScanError, OSError):
        return None


def _label(case: FoundCase, table: LabelTable) -> Volume | None:
    assert case.label is not None
    try:
        return read_classes(case.label, table, image=case.image)
    except ScanError:  # the case is imported without it
        return None


def facts_of(about: ScanFacts, image: Volume, label: Volume | None) -> ScanFacts:
    """Add what the voxels of a scan, without its padding, and of its label tell."""
    box = foreground_box(image)
    z, y, x = ((box[1] - box[0] + 1)[::-1] * about.spacing_mm).tolist()
    low, high = float(image.array.min()), float(image.array.max())
    ct = _AIR_HU[0] <= low <= _AIR_HU[1] and high >= _DENSE_HU
    volumes: dict[int, float] = {}
    window = covered = None
    if label is not None:
        counts = np.bincount(label.array.ravel().astype(np.int64), minlength=IGNORED + 1)
        ml = voxel_ml(label.affine)
        volumes = {i: float(n) * ml for i, n in enumerate(counts[:IGNORED]) if i and n}
        inside = label.array % IGNORED > 0
        if inside.any():
            turn, _ = to_upright_lps(label.affine, label.shape)
            placed = map_points(np.linalg.inv(turn), np.argwhere(inside)[:, ::-1])
            covered = float(((placed >= box[0]) & (placed <= box[1])).all(1).mean())
        if ct and label.shape == image.shape and inside.any():
            low, high = np.percentile(image.array[inside], _WINDOW_PERCENTILES).tolist()
            window = low, high
    return ScanFacts(
        *(about.case_id, about.shape, about.spacing_mm, (z, y, x), covered, ct, window, volumes)
    )
