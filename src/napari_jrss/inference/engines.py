"""Registration engines by name: two images on one grid give a displacement field, untrained.

Besides our own, an engine drives another package, which is imported when it is first used. Any
installed package can add engines through the entry-point group ``napari_jrss.registration``.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_jrss.errors import JRSSError, did_you_mean, one_line
from napari_jrss.geometry import Triple
from napari_jrss.snapshot import Image

GROUP = "napari_jrss.registration"
"""The entry-point group; each entry is an :class:`Engine`, under its name."""

Field = NDArray[np.float32]
Watch = Callable[[float], bool]
"""Called before each step with the share of the work that is done; returns whether to go on."""


def to_the_end(done: float) -> bool:
    """A :data:`Watch` that never stops the work."""
    return True


class EngineError(JRSSError):
    """An engine is unknown, its package is missing, or it failed on a pair."""


@dataclass(frozen=True)
class Engine:
    """A way to register two images without training.

    Attributes
    ----------
    name
        How it is asked for.
    about
        What it is, in a few words.
    field
        ``(moving, fixed, spacing_mm, device, watch)`` -> displacement. The images are float32
        (z, y, x) on one grid with voxels of `spacing_mm` (z, y, x); `device` is ``cpu`` or
        ``cuda``, for engines that can use it; `watch` is told the share of the work that is done
        and says whether to go on. The displacement is (3, z, y, x) in voxels, order z, y, x:
        ``warped(p) = moving(p + u(p))``.
    module
        The top-level module that has to be there; empty if nothing but napari-jrss is needed.
    install
        What to install if it isn't there, as pip's arguments.
    """

    name: str
    about: str
    field: Callable[[Image, Image, Triple, str, Watch], Field]
    module: str = ""
    install: str = ""

    @property
    def problem(self) -> str:
        """Why it can't be used, and what to install, in a line; empty if it can."""
        if not self.module or find_spec(self.module) is not None:
            return ""
        return f"the engine {self.name} is not installed: pip install {self.install}"

    def require(self) -> None:
        """Raise an :class:`EngineError` if the package that it drives isn't installed."""
        if self.problem:
            raise EngineError(self.problem)

    def register(
        self,
        moving: Image,
        fixed: Image,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        *,
        device: str = "cpu",
        watch: Watch = to_the_end,
    ) -> Field:
        """The field of one pair, see :attr:`field`.

        Raises
        ------
        EngineError
            Its package is missing, or it gave no usable field.
        """
        self.require()
        z, y, x = (float(size) for size in spacing_mm)
        try:
            field = self.field(moving, fixed, (z, y, x), device, watch)
        except (JRSSError, MemoryError):
            raise
        except Exception as error:  # another package may raise any error
            raise EngineError(f"the engine {self.name} failed: {one_line(error)}") from error
        if field.shape != (3, *fixed.shape) or not np.isfinite(field).all():
            raise EngineError(f"the engine {self.name} gave no usable field for this pair")
        return np.ascontiguousarray(field, dtype=np.float32)


def engines() -> dict[str, Engine]:
    """All engines by name, ours first; whether each can be used, it says itself."""
    found = {engine.name: engine for engine in BUILT_IN}
    for entry in metadata.entry_points(group=GROUP):
        if entry.name in found:
            continue
        try:
            engine = entry.load()
        except Exception as error:  # of a package that is broken
            reason = f"{entry.value} can't be loaded: {one_line(error)}"
            raise EngineError(f"the engine {entry.name} of {reason}") from error
        found[entry.name] = engine
    return found


def engine_named(name: str) -> Engine:
    """The engine of this name, ready to be used.

    Raises
    ------
    EngineError
        There is none, or its package isn't installed.
    """
    known = engines()
    if name not in known:
        hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
        raise EngineError(f"unknown engine {name!r}{hint}")
    known[name].require()
    return known[name]


def _refine(moving: Image, fixed: Image, spacing_mm: Triple, device: str, watch: Watch) -> Field:
    from napari_jrss.inference.refine import register_images

    field = register_images(moving, fixed, spacing_mm, device=device, watch=watch)
    return field.cpu().numpy()


def _greedy(moving: Image, fixed: Image, spacing_mm: Triple, device: str, watch: Watch) -> Field:
    """Its affine step is left out: it often misses small scans, which are aligned already."""
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
"""Voxels: the coarsest level of ANTs leaves nothing of an axis that is much shorter."""


def syn(
    moving: Image, fixed: Image, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0), **options: Any
) -> Field:
    """SyN of ANTs (Avants et al. 2008): affine and warp as one field (3, z, y, x) in voxels.

    `options` are those of ``ants.registration``. The same input gives the same field.
    """
    import ants

    # Its sampling is random otherwise. On one thread, as sums depend on the order, too.
    ants.config.set_ants_deterministic(on=True, seed_value=1)
    missing = [max(0, SHORTEST - size) for size in fixed.shape]
    margins = [(each // 2, each - each // 2) for each in missing]
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
        found = ants.registration(
            fixed_image, moving_image, type_of_transform="SyN", outprefix=f"{folder}/", **options
        )
        composed = ants.apply_transforms(
            fixed_image, moving_image, found["fwdtransforms"], compose=f"{folder}/all_"
        )
        field = np.moveaxis(ants.image_read(composed).numpy() / np.array(spacing_mm), -1, 0)
    inner = tuple(slice(m[0], m[0] + size) for m, size in zip(margins, fixed.shape, strict=True))
    return np.ascontiguousarray(field[(slice(None), *inner)], dtype=np.float32)


def _ants(moving: Image, fixed: Image, spacing_mm: Triple, device: str, watch: Watch) -> Field:
    return syn(moving, fixed, spacing_mm)


def _convexadam(
    moving: Image, fixed: Image, spacing_mm: Triple, device: str, watch: Watch
) -> Field:
    import torch

    with warnings.catch_warnings():  # it switches all warnings off
        from convexAdam.convex_adam_MIND import convex_adam_pt

    # Its grids hold every sixth and every second voxel; what is left over would be stretched.
    margins = [(0, -size % CONVEX_GRID) for size in fixed.shape]
    images = [torch.from_numpy(np.pad(image, margins, mode="edge")) for image in (fixed, moving)]
    with contextlib.redirect_stdout(io.StringIO()):
        moved = convex_adam_pt(*images, grid_sp=CONVEX_GRID, device=torch.device(device))
    inner = tuple(slice(size) for size in fixed.shape)
    field: Field = np.moveaxis(moved[inner], -1, 0).astype(np.float32)
    return field


CONVEX_GRID = 6
"""Voxels between the points of ConvexAdam's first grid, its own default."""


def _fireants(moving: Image, fixed: Image, spacing_mm: Triple, device: str, watch: Watch) -> Field:
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
    found = places.detach().cpu().numpy()[0]
    sizes = np.array(fixed.shape[::-1])
    voxels = np.moveaxis((found + 1) / 2 * (sizes - 1), -1, 0)[::-1]
    return np.asarray(voxels - np.indices(fixed.shape), dtype=np.float32)


REFINE = Engine("refine", "gradient descent on local correlation, part of napari-jrss", _refine)
BUILT_IN = (
    REFINE,
    Engine(
        "greedy",
        "greedy diffeomorphic registration by local correlation (PICSL)",
        _greedy,
        "picsl_greedy",
        '"napari-jrss[greedy]"',
    ),
    Engine("ants", "affine and SyN (ANTs), its defaults", _ants, "ants", '"napari-jrss[ants]"'),
    Engine(
        "convexadam",
        "ConvexAdam on MIND features, its defaults",
        _convexadam,
        "convexAdam",
        '"napari-jrss[convexadam]"',
    ),
    Engine(
        "fireants",
        "greedy diffeomorphic registration by Adam (FireANTs)",
        _fireants,
        "fireants",
        # It asks for an old SimpleITK, but works with ours.
        "--no-deps fireants",
    ),
)
