"""A synthetic brain-like cohort with known labels and deformations, made in seconds.

Each case is the same analytic template (:func:`template`), deformed by a smooth, invertible map
of its own (:class:`Deformation`), with its own contrast, bias field and noise. The ten structures
are those of the paper's LPBA40 groups. The deformations are known, and so is the correspondence
between any two cases (:func:`true_displacement`).

Points have normalised coordinates (z, y, x) from -1 to 1 over the field of view, which point to
Superior, Posterior and Left; a seed therefore gives the same anatomy on a grid of any size.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage
from scipy.spatial.transform import Rotation

from napari_jrss.errors import JRSSError
from napari_jrss.geometry import Shape


class SampleError(JRSSError):
    """A cohort that can't be made as asked."""


Array: TypeAlias = npt.NDArray[np.float64]

STRUCTURES = (
    "frontal",
    "parietal",
    "occipital",
    "temporal",
    "cingulate",
    "insula",
    "caudate",
    "putamen",
    "hippocampus",
    "cerebellum_brainstem",
)
"""Names of the structures; label 1 is the first."""

ORIENTATIONS = ("RAS", "LPS", "PIR", "LAS")
"""Orientations of the files, used in turn, as real cohorts mix them too."""

LESION = "lesion"
"""Name of the structure that only the second image shows; its label is the last."""

CONTRASTS = ("T1", "FLAIR")
"""Names of the images of a case with two, at the ends of their files' names."""

# Brightness of the second image for that of the first: fluid is dark, grey matter brighter than
# white. Of the lesion, its radius, and what is darker in the first image, which it isn't in.
_FLAIR = ((0.0, 0.22, 0.55, 0.66, 0.9, 1.0), (0.0, 0.1, 0.62, 0.56, 0.45, 0.45))
_BRIGHT, _RADIUS, _FLUID = 1.0, 0.24, 0.3
# Slices of the second image are so much thicker.
_THICKER = 1.5
_CONTROL_POINTS = 24
_SQUARINGS = 6


@dataclass(frozen=True)
class Deformation:
    """The invertible map of a case to the template: a diffeomorphism, then an affine map.

    Attributes
    ----------
    velocity
        The diffeomorphism's stationary velocity (3, g, g, g), in normalised coordinates on a
        regular control grid.
    matrix, offset
        The affine map q = matrix @ p + offset.
    """

    velocity: Array
    matrix: Array
    offset: Array

    def to_template(self, points: Array) -> Array:
        """Map points (3, ...) of the case to the template."""
        moved = points + _interpolate(_exponential(self.velocity), points)
        return _affine(self.matrix, moved, self.offset)

    def from_template(self, points: Array) -> Array:
        """Map points (3, ...) of the template to the case, the inverse of `to_template`."""
        inverse = np.asarray(np.linalg.inv(self.matrix), dtype=np.float64)
        moved = _affine(inverse, points, -inverse @ self.offset)
        return moved + _interpolate(_exponential(-self.velocity), moved)


@dataclass(frozen=True)
class SyntheticCase:
    """A case: image (z, y, x), float32, in arbitrary positive units; labels (z, y, x), uint8.

    `flair` is its second image, if it has one, on fewer slices over the same field of view.
    """

    case_id: str
    image: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    flair: npt.NDArray[np.float32] | None = None


def make_cohort(
    folder: str | Path,
    cases: int = 12,
    shape: Shape = (48, 48, 48),
    seed: int = 0,
    structures: int = len(STRUCTURES),
    spacing_mm: float = 4.0,
    flair: bool = False,
) -> Path:
    """Write a cohort as NIfTI: ``images/``, ``labels/`` (same file names) and ``groups.csv``.

    Parameters
    ----------
    folder
        Made if it doesn't exist; files of the same names are overwritten.
    cases
        Number of cases, ``case_001`` onwards; case k is the same in a cohort of any size.
    shape
        Grid (z, y, x) in voxels; each structure is visible from 16 per axis on.
    seed
        Decides everything that is random.
    structures
        How many of :data:`STRUCTURES` are labelled (1 to 10), starting with the first.
    spacing_mm
        Isotropic voxel size in mm.
    flair
        Whether each case has two images, ``case_001_T1`` and ``case_001_FLAIR``. The second has
        thicker slices, and it alone shows a lesion, which is one structure more.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    SampleError
        A number is out of range.
    """
    if cases < 1:
        raise SampleError(f"cases must be at least 1, not {cases}")
    folder = Path(folder)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(cases):
        case = make_case(index, shape, seed, structures, flair)
        orientation = ORIENTATIONS[index % len(ORIENTATIONS)]
        end = ".nii.gz" if case.flair is None else f"_{CONTRASTS[0]}.nii.gz"
        spacing = np.full(3, spacing_mm)
        _write(folder / "images" / f"{case.case_id}{end}", case.image, spacing, orientation)
        _write(folder / "labels" / f"{case.case_id}.nii.gz", case.labels, spacing, orientation)
        if case.flair is not None:
            thicker = spacing * np.array([shape[0] / case.flair.shape[0], 1, 1])
            file = f"{case.case_id}_{CONTRASTS[1]}.nii.gz"
            _write(folder / "images" / file, case.flair, thicker, ORIENTATIONS[0])
    with (folder / "groups.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("label", "name", "class_id", "class_name"))
        names = (*STRUCTURES[:structures], *((LESION,) if flair else ()))
        for label, name in enumerate(names, start=1):
            writer.writerow((label, name, label, name))
    return folder


def make_case(
    index: int,
    shape: Shape = (48, 48, 48),
    seed: int = 0,
    structures: int = len(STRUCTURES),
    flair: bool = False,
) -> SyntheticCase:
    """Make case `index` (from 0) of the cohort with this seed; see :func:`make_cohort`."""
    if not 1 <= structures <= len(STRUCTURES):
        raise SampleError(f"structures must be 1 to {len(STRUCTURES)}, not {structures}")
    if min(shape) < 8:
        raise SampleError(f"shape must be at least 8 voxels along each axis, not {shape}")
    points = deformation(index, seed).to_template(grid_points(shape))
    tissue, labels = template(points)
    labels[labels > structures] = 0
    rng = np.random.default_rng((seed, index, 1))
    image = _acquire(tissue, rng)
    second = None
    if flair:
        labels[(tissue > _FLUID) & _in_lesion(points, index, seed)] = structures + 1
        second = _flair(index, shape, seed)
    return SyntheticCase(f"case_{index + 1:03d}", image.astype(np.float32), labels, second)


def _flair(index: int, shape: Shape, seed: int) -> npt.NDArray[np.float32]:
    """The second image of a case, on fewer slices."""
    z, y, x = shape
    points = deformation(index, seed).to_template(grid_points((round(z / _THICKER), y, x)))
    tissue, _ = template(points)
    seen = np.interp(tissue, *_FLAIR)
    seen[(tissue > _FLUID) & _in_lesion(points, index, seed)] = _BRIGHT
    return _acquire(seen, np.random.default_rng((seed, index, 3))).astype(np.float32)


def _in_lesion(points: Array, index: int, seed: int) -> npt.NDArray[np.bool_]:
    """Mask of a ball about a place in the cerebrum that is drawn for each case."""
    rng = np.random.default_rng((seed, index, 2))
    direction = rng.normal(size=3)
    direction[0] = abs(direction[0])  # above the fissures
    direction /= np.linalg.norm(direction)
    centre = np.array([0.13, -0.02, 0.0]) + 0.55 * np.array([0.64, 0.8, 0.72]) * direction
    inside: npt.NDArray[np.bool_] = (
        np.linalg.norm(points - centre.reshape(3, 1, 1, 1), axis=0) < _RADIUS
    )
    return inside


def deformation(index: int, seed: int = 0) -> Deformation:
    """The known deformation of case `index` (from 0) of the cohort with this seed."""
    rng = np.random.default_rng((seed, index, 0))
    velocity = _smooth_noise(rng, smoothness=0.35, std=0.026)
    velocity += _smooth_noise(rng, smoothness=0.15, std=0.01)
    rotation = Rotation.from_rotvec(rng.normal(0, 3, 3), degrees=True).as_matrix()
    scale_and_shear = np.eye(3) + np.diag(rng.normal(0, 0.03, 3)) + rng.normal(0, 0.01, (3, 3))
    return Deformation(velocity, rotation @ scale_and_shear, rng.normal(0, 0.015, 3))


def true_displacement(
    fixed: int, moving: int, shape: Shape = (48, 48, 48), seed: int = 0
) -> npt.NDArray[np.float32]:
    """The known field that registers case `moving` to case `fixed`.

    Returns
    -------
    ndarray (3, z, y, x)
        Displacements u in voxels, components ordered z, y, x, on the fixed grid:
        moving(p + u(p)) shows the anatomy of fixed(p). Indices of cases start at 0.
    """
    points = grid_points(shape)
    in_template = deformation(fixed, seed).to_template(points)
    in_moving = deformation(moving, seed).from_template(in_template)
    voxels_per_unit = np.asarray(shape, dtype=float)[:, None, None, None] / 2
    return ((in_moving - points) * voxels_per_unit).astype(np.float32)


def grid_points(shape: Shape) -> Array:
    """Normalised coordinates (3, z, y, x) of the voxel centres of a grid."""
    axes = [(np.arange(size) + 0.5) * 2 / size - 1 for size in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def template(points: Array) -> tuple[Array, npt.NDArray[np.uint8]]:
    """Tissue brightness in [0, 1] and label of the template at points (3, ...).

    Left and right differ: the left occipital and the right frontal lobe are longer, and there
    is a marker capsule at the right temple, as radiographers use it.
    """
    z, y, x = points
    y = y - 0.1 * x  # the torque of real brains
    side = np.abs(x)
    tissue = np.zeros(z.shape)
    labels = np.zeros(z.shape, dtype=np.uint8)

    def paint(where: npt.NDArray[np.bool_], brightness: float | Array, structure: str = "") -> None:
        tissue[where] = np.broadcast_to(brightness, z.shape)[where]
        labels[where] = STRUCTURES.index(structure) + 1 if structure else 0

    def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
        terms = zip((z, y, side), centre, radii, strict=True)
        scaled = [((axis - at) / radius) ** 2 for axis, at, radius in terms]
        return np.asarray(np.sqrt(np.sum(scaled, axis=0)))

    csf, grey, deep_grey, white = 0.22, 0.55, 0.66, 0.9

    # Cerebellum and brainstem come first, as the cerebrum covers their upper end.
    leaves = 0.12 * np.sin(26 * ellipsoid((-0.3, 0.2, 0), (1, 1, 1)))
    stem_axis = np.hypot(y - 0.14 - 0.1 * z, x)
    paint((stem_axis < 0.12) & (z > -0.88) & (z < 0), 0.8, "cerebellum_brainstem")
    paint(
        ellipsoid((-0.52, 0.42, 0), (0.25, 0.31, 0.46)) < 1, 0.62 + leaves, "cerebellum_brainstem"
    )

    # Cerebrum: cerebrospinal fluid, a cortical ribbon cut by sulci, white matter.
    depth = ellipsoid((0.13, -0.02, 0), (0.64, 0.8, 0.72))
    folds = np.sin(11 * y + 3 * np.sin(5 * z)) * np.sin(10 * z + 2 * np.sin(4 * y))
    cerebrum = (depth < 1) & (z > -0.4 + 0.2 * y)
    paint(cerebrum, csf)
    cortex = cerebrum & (depth < 0.95 - 0.1 * (folds > 0.55))
    behind_central_sulcus = y > -0.1 + 0.25 * z
    lateral_fissure = -0.02 + 0.15 * y
    paint(cortex & ~behind_central_sulcus, grey, "frontal")
    paint(cortex & behind_central_sulcus, grey, "parietal")
    temporal = (z < lateral_fissure) & (side > 0.06) & (y > -0.48)
    paint(cortex & temporal, grey, "temporal")
    paint(cortex & (y > 0.46 + 0.15 * z), grey, "occipital")
    paint(cerebrum & (depth < 0.69 + 0.05 * folds), white)

    # Medial wall: the fissure between the hemispheres and the cingulate around the callosum.
    callosum = np.hypot((z - 0.1) / 0.62, (y + 0.02) / 0.8)
    paint(
        cerebrum & (side < 0.18) & (callosum < 0.74) & (callosum > 0.5) & (z > 0.06),
        grey,
        "cingulate",
    )
    paint(cerebrum & (side < 0.03) & (callosum > 0.5), csf)

    # Deep structures; thalamus and ventricles are not labelled.
    paint(ellipsoid((0.02, 0.08, 0.1), (0.1, 0.15, 0.09)) < 1, deep_grey + 0.08)
    paint(ellipsoid((0.19, 0.03, 0.06), (0.08, 0.34, 0.06)) < 1, csf)
    paint(ellipsoid((0.04, -0.1, 0.43), (0.2, 0.27, 0.08)) < 1, grey, "insula")
    paint(ellipsoid((0.04, -0.1, 0.27), (0.15, 0.22, 0.09)) < 1, deep_grey, "putamen")
    caudate_head = ellipsoid((0.13, -0.24, 0.14), (0.12, 0.15, 0.1)) < 1
    caudate_body = ellipsoid((0.2, 0.0, 0.16), (0.09, 0.26, 0.08)) < 1
    paint(caudate_head | caudate_body, deep_grey, "caudate")
    curved = side - 0.3 + 0.25 * (y - 0.12)
    hippocampus = np.sqrt(((z + 0.17) / 0.09) ** 2 + ((y - 0.12) / 0.24) ** 2 + (curved / 0.1) ** 2)
    paint(hippocampus < 1, grey, "hippocampus")

    marker = np.sqrt((z - 0.05) ** 2 + (y + 0.25) ** 2 + (x + 0.84) ** 2)
    paint(marker < 0.08, 1.0)
    return tissue, labels


def _acquire(tissue: Array, rng: np.random.Generator) -> Array:
    """Simulate a scan: partial volume, contrast, bias field, Rician noise, arbitrary units."""
    signal = ndimage.gaussian_filter(tissue, 0.5) ** rng.uniform(0.75, 1.35)
    tilt, bow = rng.normal(0, 0.15, 3), rng.normal(0, 0.12, 3)
    z, y, x = tissue.shape
    points = grid_points((z, y, x))
    bias = np.einsum("c,czyx->czyx", tilt, points) + np.einsum("c,czyx->czyx", bow, points**2)
    signal = signal * np.exp(bias.sum(axis=0))
    noise = rng.normal(0, rng.uniform(0.03, 0.06), (2, *tissue.shape))
    scanned = np.hypot(signal + noise[0], noise[1])
    return np.asarray(scanned * rng.uniform(300, 1500))


def _write(path: Path, array: npt.NDArray[np.generic], spacing: Array, orientation: str) -> None:
    """Write an LPS array as NIfTI in another orientation, centred in the world.

    The array and the spacing in mm are (z, y, x).
    """
    data = np.ascontiguousarray(array.transpose(2, 1, 0))
    if data.dtype == np.float32:
        data = np.rint(data).astype(np.int16)
    centre = (np.array(data.shape) - 1) / 2
    to_ras = np.diag(spacing[::-1] * (-1, -1, 1))
    affine = np.eye(4)
    affine[:3, :3] = to_ras
    affine[:3, 3] = -to_ras @ centre
    image = nib.Nifti1Image(data, affine)
    wanted = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
    image = image.as_reoriented(wanted)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _smooth_noise(rng: np.random.Generator, smoothness: float, std: float) -> Array:
    """A random vector field on the control grid; smoothness and std in normalised units."""
    # Made on a larger grid, so that the field is as strong at the border as in the middle.
    margin = _CONTROL_POINTS // 2
    noise = rng.standard_normal((3, *[_CONTROL_POINTS + 2 * margin] * 3))
    sigma = smoothness * (_CONTROL_POINTS - 1) / 2
    smooth = np.stack([ndimage.gaussian_filter(axis, sigma, mode="wrap") for axis in noise])
    inner = slice(margin, -margin)
    # Scaled by the strength on the large grid, so that cases are deformed more or less.
    return np.asarray(smooth[:, inner, inner, inner] * (std / smooth.std()))


def _exponential(velocity: Array) -> Array:
    """Integrate a stationary velocity field by scaling and squaring (Arsigny et al. 2006)."""
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, _CONTROL_POINTS)] * 3, indexing="ij"))
    displacement: Array = velocity / 2**_SQUARINGS
    for _ in range(_SQUARINGS):
        displacement = displacement + _interpolate(displacement, points + displacement)
    return displacement


def _interpolate(field: Array, points: Array) -> Array:
    """Cubic interpolation of a control-grid field (3, g, g, g) at points (3, ...)."""
    at = (points + 1) * (_CONTROL_POINTS - 1) / 2
    return np.stack([ndimage.map_coordinates(axis, at, order=3, mode="nearest") for axis in field])


def _affine(matrix: Array, points: Array, offset: Array) -> Array:
    moved = np.tensordot(matrix, points, axes=1)
    return np.asarray(moved + offset.reshape(3, *[1] * (points.ndim - 1)), dtype=np.float64)
