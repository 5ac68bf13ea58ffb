"""The cases and label versions of one training run.

A :class:`CohortSnapshot` is taken from a project once. A running round uses the labels as they
were then, whatever happens to the project.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from napari_jrss.geometry import Matrix, Shape, Triple

Image = NDArray[np.float32]
Label = NDArray[np.uint8] | NDArray[np.uint16]


class CaseArrays(Protocol):
    """Source of the volumes of a run, by case id."""

    def image(self, case_id: str) -> Image:
        """Preprocessed image (z, y, x) on the training grid; of several channels the first."""
        ...

    def channels(self, case_id: str) -> Image:
        """All images of a case (channels, z, y, x) on the training grid: what is segmented."""
        ...

    def label(self, case_id: str) -> Label:
        """Class indices (z, y, x) on the training grid."""
        ...


@dataclass(frozen=True, eq=False)
class CaseScan:
    """A case on its scan's own voxels, turned to LPS.

    Attributes
    ----------
    images
        (channels, z, y, x), float32, intensities scaled as on the training grid. Further images
        are brought to the voxels of the first.
    scan_to_grid
        4x4: voxel (x, y, z, 1) of the scan -> voxel of the training grid.
    """

    images: Image
    scan_to_grid: Matrix

    @property
    def shape(self) -> Shape:
        """Voxels (z, y, x)."""
        z, y, x = self.images.shape[1:]
        return z, y, x

    @property
    def finer(self) -> float:
        """How many times smaller its voxels are than those of the training grid."""
        return times_finer(self.scan_to_grid)


def times_finer(scan_to_grid: Matrix) -> float:
    """Cube root of the volume of a voxel of the training grid, in voxels of the scan."""
    return float(abs(np.linalg.det(scan_to_grid[:3, :3])) ** (-1 / 3))


class CaseScans(Protocol):
    """Source of the scans of a run at their own resolution, by case id; nothing is kept."""

    def scan(self, case_id: str) -> CaseScan:
        """The images of a case."""
        ...

    def scan_label(self, case_id: str) -> Label:
        """Class indices (z, y, x) on the scan's voxels, of a case that has a label."""
        ...

    def finer(self, case_id: str) -> float:
        """:func:`times_finer` of a case, without reading its voxels."""
        ...


@dataclass
class CachedArrays:
    """Volumes kept in memory, so that small cohorts are read from disk only once.

    If they exceed `budget_bytes`, the least recently used are dropped. `read_image` gives an image
    (z, y, x), or several (channels, z, y, x).
    """

    read_image: Callable[[str], Image]
    read_label: Callable[[str], Label]
    budget_bytes: int = 2**30
    _kept: OrderedDict[tuple[str, str], NDArray[np.generic]] = field(
        default_factory=OrderedDict, repr=False
    )

    def image(self, case_id: str) -> Image:
        """Image of a case (z, y, x), the first channel, from memory or from the disk."""
        first: Image = self.channels(case_id)[0]
        return first

    def channels(self, case_id: str) -> Image:
        """All images of a case (channels, z, y, x), from memory or from the disk."""
        image = self._get("image", case_id, self.read_image)
        return image if image.ndim == 4 else image[None]

    def label(self, case_id: str) -> Label:
        """Label of a case (z, y, x), from memory or from the disk."""
        return self._get("label", case_id, self.read_label)

    def _get(self, kind: str, case_id: str, read: Callable[[str], NDArray]) -> NDArray:  # type: ignore[type-arg]
        key = (kind, case_id)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        array = self._kept[key] = read(case_id)
        while (
            len(self._kept) > 1 and sum(a.nbytes for a in self._kept.values()) > self.budget_bytes
        ):
            self._kept.popitem(last=False)
        return array


@dataclass(frozen=True)
class CohortSnapshot:
    """The cases of one run: N labelled, J unlabelled, and the validation cases.

    Attributes
    ----------
    class_names
        Names of the C output classes; index 0 is the background.
    spacing_mm
        Voxel size (z, y, x) of the training grid in mm.
    shape
        Training grid (z, y, x) in voxels.
    labelled, unlabelled, validation
        Case ids. Validation cases have labels and never train.
    label_versions
        Label version of each labelled and validation case.
    arrays
        Source of the volumes.
    channels
        Names of the images that each case has, the one that is registered first; empty where each
        has one.
    scans
        Source of the scans at their own resolution; None where only the training grid is at hand.
    """

    class_names: tuple[str, ...]
    spacing_mm: Triple
    shape: Shape
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    validation: tuple[str, ...]
    label_versions: Mapping[str, str]
    arrays: CaseArrays
    channels: tuple[str, ...] = ()
    scans: CaseScans | None = None

    @property
    def inputs(self) -> int:
        """Number of images that the segmentation network sees of a case."""
        return max(1, len(self.channels))

    @property
    def training(self) -> tuple[str, ...]:
        """All K = N + J training cases, in a fixed order."""
        return tuple(sorted((*self.labelled, *self.unlabelled)))

    @property
    def classes(self) -> int:
        """Number of classes C, background included."""
        return len(self.class_names)
