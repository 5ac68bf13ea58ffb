"""What each built-in engine does with a pair; see :class:`napari_jrss.inference.engines.Engine`.

All but :func:`refine` drive another package, which is imported when a pair is registered.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_jrss.geometry import Triple
from napari_jrss.inference.watch import Watch
from napari_jrss.snapshot import Image

Field = NDArray[np.float32]


def refine(moving: Image, fixed: Image, spacing_mm: Triple, device: str, watch: Watch) -> Field:
    """Our own, see :func:`napari_jrss.inference.refine.register_images`."""
    from napari_jrss.inference.refine import register_images

    field = register_images(moving, fixed, spacing_mm, device=device, watch=watch)
    return field.cpu().numpy()


def greedy(moving: Image, fixed: Image, spacing_mm: Triple, device: str, watch: Watch) -> Field:
    """Greedy (Yushkevich et al. 2016) of picsl_greedy, without its affine step.

    That step often misses on small scans, and the scans are aligned already.
    """
    import SimpleITK as sitk  # noqa: N813
    from picsl_greedy import Greedy3D

    greedy = Greedy3D()
    greedy.execute(
        "-i fixed moving -m NCC 2x2x2 -n 100x50x20 -s 2vox 0.5vox -o warp -V 0",
        out=io.StringIO(),
        fixed=_itk_image(fixed, spacing_mm),
        moving=_itk_image(moving, spacing_mm),
        warp=None,
    )
    displacement = sitk.GetArrayFromImage(greedy["warp"])  # (z, y, x, 3) in mm, order x, y, z
    field = np.moveaxis(displacement[..., ::-1] / np.array(spacing_mm), -1, 0)
    return np.ascontiguousarray(field, dtype=np.float32)


def _itk_image(image: Image, spacing_mm: Triple) -> Any:
    import SimpleITK as sitk  # noqa: N813

    made = sitk.GetImageFromArray(image - image.min())
    made.SetSpacing(spacing_mm[::-1])
    return made


SHORTEST = 32
"""Voxels: the coarsest levels of ANTs and FireANTs leave too little of a shorter axis."""


def _margins(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels to add before and after each axis, so that none is too short."""
    missing = [max(0, SHORTEST - size) for size in shape]
    return [(each // 2, each - each // 2) for each in missing]


def _without(margins: Sequence[tuple[int, int]], field: NDArray[Any]) -> Field:
    """A field (3, z, y, x) without the margins."""
    inner = (
        slice(low, size - high) for (low, high), size in zip(margins, field.shape[1:], strict=True)
    )
    return np.ascontiguousarray(field[(slice(None), *inner)], dtype=np.float32)


def syn(
    moving: Image, fixed: Image, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0), **options: Any
) -> Field:
    """SyN of ANTs (Avants et al. 2008), with its affine step, as a field (3, z, y, x) in voxels.

    `options` are those of ``ants.registration``. The same input gives the same field.
    """
    import ants

    # Its sampling is random otherwise. On one thread, as sums depend on the order, too.
    ants.config.set_ants_deterministic(on=True, seed_value=1)
    margins = _margins(fixed.shape)
    # Axis 0 is the x of ANTs, so that its fields have our components. It starts from the centres
    # of mass, which images of mean 0 don't have.
    fixed_image, moving_image = (
        ants.from_numpy(
            np.pad((image - image.min()).astype(np.float32), margins, mode="edge"),
            spacing=tuple(map(float, spacing_mm)),
        )
        for image in (fixed, moving)
    )
    with tempfile.TemporaryDirectory() as folder:
        options = {"type_of_transform": "SyN", **options}
        found = ants.registration(fixed_image, moving_image, outprefix=f"{folder}/", **options)
        composed = ants.apply_transforms(
            fixed_image, moving_image, found["fwdtransforms"], compose=f"{folder}/all_"
        )
        field = np.moveaxis(ants.image_read(composed).numpy() / np.array(spacing_mm), -1, 0)
    return _without(margins, field)


def ants_syn(moving: Image, fixed: Image, spacing_mm: Triple, device: str, watch: Watch) -> Field:
    """SyN of antspyx with its defaults, without its affine step, as for :func:`greedy`."""
    return syn(moving, fixed, spacing_mm, type_of_transform="SyNOnly", initial_transform="Identity")


def convexadam(moving: Image, fixed: Image, spacing_mm: Triple, device: str, watch: Watch) -> Field:
    """ConvexAdam (Siebert et al. 2024) of the package convexAdam, with its defaults."""
    import torch

    # Its grids hold every sixth and every second voxel; what is left over would be stretched.
    margins = [(0, -size % CONVEX_GRID) for size in fixed.shape]
    images = [torch.from_numpy(np.pad(image, margins, mode="edge")) for image in (fixed, moving)]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from convexAdam.convex_adam_MIND import convex_adam_pt  # switches all warnings off

        moved = convex_adam_pt(*images, grid_sp=CONVEX_GRID, device=torch.device(device))
    inner = tuple(slice(size) for size in fixed.shape)
    field: Field = np.moveaxis(moved[inner], -1, 0).astype(np.float32)
    return field


CONVEX_GRID = 6
"""Voxels between the points of ConvexAdam's first grid, its own default."""


def fireants(moving: Image, fixed: Image, spacing_mm: Triple, device: str, watch: Watch) -> Field:
    """Greedy diffeomorphic registration of FireANTs (Jena et al. 2024)."""
    margins = _margins(fixed.shape)
    moving, fixed = (np.pad(image, margins, mode="edge") for image in (moving, fixed))
    log = logging.getLogger("fireants")
    log.propagate = False  # it tells the terminal about every step
    log.addHandler(logging.NullHandler())
    with contextlib.redirect_stdout(io.StringIO()):
        from fireants.io import BatchedImages
        from fireants.io import Image as FireImage
        from fireants.registration.greedy import GreedyRegistration

        fixed_batch, moving_batch = (
            BatchedImages([FireImage(_itk_image(image, spacing_mm), device=device)])
            for image in (fixed, moving)
        )
        registration = GreedyRegistration(
            scales=[4, 2, 1],
            iterations=[200, 100, 50],
            fixed_images=fixed_batch,
            moving_images=moving_batch,
            cc_kernel_size=5,
            progress_bar=False,
        )
        registration.optimize()
        places = registration.get_warped_coordinates(fixed_batch, moving_batch)
    found = places.detach().cpu().numpy()[0]  # (z, y, x, 3) from -1 to 1, order x, y, z
    sizes = np.array(fixed.shape[::-1])
    voxels = np.moveaxis((found + 1) / 2 * (sizes - 1), -1, 0)[::-1]
    return _without(margins, voxels - np.indices(fixed.shape))
