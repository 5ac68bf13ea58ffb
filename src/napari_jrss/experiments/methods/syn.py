"""Registration without training: none at all, or SyN of ANTs (Avants et al. 2008).

SyN comes through antspyx: affine, then symmetric normalisation. ``train`` takes the package's
defaults: mutual information, and no iterations at full resolution. ``train_cc`` takes
cross-correlation, and iterations at every resolution. The paper doesn't say which it used.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from napari_jrss.experiments.recipe import FieldModule, Task, Trained

SHORTEST = 32


def train_initial(task: Task) -> Trained:
    """No registration beyond what preprocessing did (its affine pre-alignment, if any)."""
    return Trained(registration=FieldModule(lambda moving, fixed: np.zeros((3, *fixed.shape))))


def train(task: Task) -> Trained:
    """Nothing to train: each pair is optimised by itself."""
    return Trained(registration=FieldModule(syn))


def train_cc(task: Task) -> Trained:
    """The same with cross-correlation (radius 4) down to full resolution."""
    return Trained(registration=FieldModule(syn_cc))


def syn_cc(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """SyN with cross-correlation and (100, 70, 20) iterations."""
    return syn(moving, fixed, syn_metric="CC", syn_sampling=4, reg_iterations=(100, 70, 20))


def syn(moving: np.ndarray, fixed: np.ndarray, **options: Any) -> np.ndarray:
    """Register two images (z, y, x); affine and warp as one field (3, z, y, x) in voxels."""
    import ants

    # Its sampling is random otherwise. On one thread, as sums depend on the order, too.
    ants.config.set_ants_deterministic(on=True, seed_value=1)
    # ANTs' coarsest level leaves nothing of an axis much shorter than this.
    missing = [max(0, SHORTEST - size) for size in fixed.shape]
    margins = [(each // 2, each - each // 2) for each in missing]
    # One voxel is one unit of ANTs and axis 0 its x, so that its fields have our components. It
    # starts from the centres of mass, which images of mean 0 don't have.
    fixed_image, moving_image = (
        ants.from_numpy(np.pad((image - image.min()).astype(np.float32), margins, mode="edge"))
        for image in (fixed, moving)
    )
    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(
            fixed_image, moving_image, type_of_transform="SyN", outprefix=f"{folder}/", **options
        )
        composed = ants.apply_transforms(
            fixed_image, moving_image, found["fwdtransforms"], compose=f"{folder}/all_"
        )
        field = np.moveaxis(ants.image_read(composed).numpy(), -1, 0)
    inner = tuple(slice(m[0], m[0] + size) for m, size in zip(margins, fixed.shape, strict=True))
    return np.ascontiguousarray(field[(slice(None), *inner)], dtype=np.float32)
