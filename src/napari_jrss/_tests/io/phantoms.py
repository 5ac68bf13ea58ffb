"""Small scans with a known place in the world, for the tests of this folder."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
from hypothesis import strategies as st

from napari_jrss.io.volume import Volume

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Rotation about the three axes, in degrees."""
    matrix = np.eye(3)
    for axis, degrees in enumerate((x, y, z)):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        matrix = matrix @ turn
    return np.asarray(matrix)


def oriented_affine(orientation, zooms=(1.0, 1.0, 1.0), tilt=(0, 0, 0), origin=(0, 0, 0)):
    """RAS affine of file axes that lie (up to `tilt`) along the world's in the given order."""
    order, signs = orientation
    matrix = np.eye(4)
    linear = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        linear[world, axis] = sign * zooms[axis]
    matrix[:3, :3] = rotation(*tilt) @ linear
    matrix[:3, 3] = origin
    return matrix


def write(path: Path, array_xyz: np.ndarray, affine_ras=None, **header) -> Path:
    """Write a NIfTI file with nibabel, in the file's own (x, y, z)."""
    affine = np.eye(4) if affine_ras is None else affine_ras
    image = nib.Nifti1Image(array_xyz, affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def blobs(shape=(14, 16, 18), seed=0) -> np.ndarray:
    """An image (z, y, x) with a bright off-centre body, no symmetry and some noise."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = 100.0 * (((z - 0.1) / 0.7) ** 2 + ((y + 0.1) / 0.6) ** 2 + (x / 0.65) ** 2 < 1)
    spot = 60.0 * ((z - 0.3) ** 2 + (y - 0.1) ** 2 + (x - 0.3) ** 2 < 0.08)
    return (body + spot + rng.normal(0, 2, shape)).astype(np.float32)


def block_label(shape=(14, 16, 18)) -> np.ndarray:
    """Classes 1 and 2 as two boxes (z, y, x), neither symmetric nor at the border."""
    label = np.zeros(shape, np.uint8)
    label[4:8, 5:9, 3:8] = 1
    label[6:11, 5:12, 9:14] = 2
    return label


def volume(array: np.ndarray, affine_ras=None) -> Volume:
    """A volume with an affine given as RAS, as NIfTI has it."""
    return Volume(array, LPS_FROM_RAS @ (np.eye(4) if affine_ras is None else affine_ras))


orientations = st.sampled_from(ORIENTATIONS)
zooms = st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 1.25, 3.0])] * 3)
tilts = st.tuples(*[st.floats(-25, 25)] * 3)
origins = st.tuples(*[st.floats(-100, 100)] * 3)
shapes = st.tuples(*[st.integers(2, 9)] * 3)
