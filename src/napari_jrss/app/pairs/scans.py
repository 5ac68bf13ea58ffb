"""Register any two scans, without a project: on the fixed scan's own voxels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from napari_jrss.app.pairs.registering import (
    WITHOUT_NETWORK,
    Pair,
    RegistrationInput,
    engine_registrar,
    register_sides,
    require_engine,
)
from napari_jrss.config import Prealign, PreprocessingConfig
from napari_jrss.errors import ScanError
from napari_jrss.geometry import Matrix, Shape, rows, spacing_mm, to_upright_lps
from napari_jrss.inference.watch import Watch
from napari_jrss.io.found import stem
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.preprocess.pipeline import preprocess
from napari_jrss.preprocess.prealign import align_volumes
from napari_jrss.preprocess.resample import inside
from napari_jrss.preprocess.transform import TrainingGrid

MOST_VOXELS = 2**23
"""A fixed scan of more voxels is registered on coarser ones, to bound time and memory."""
FEWEST = 8
"""Voxels that a fixed scan has along each axis at least."""


def register_scans(
    moving: str | Path | Volume,
    fixed: str | Path | Volume,
    engine: str = WITHOUT_NETWORK,
    *,
    prealign: Prealign = "affine",
    names: tuple[str, str] = ("moving", "fixed"),
    watch: Watch | None = None,
    device: str = "auto",
) -> Pair:
    """Register a scan to another by an engine, in memory.

    Parameters
    ----------
    moving, fixed
        NIfTI file, folder of one DICOM series, or a scan in memory.
    engine
        See :func:`napari_jrss.inference.engines.engines`.
    prealign
        What comes before the engine, see :func:`napari_jrss.preprocess.prealign.align_volumes`.
    names
        Of scans in memory, for the report.
    watch
        Follows the engine `refine`, and can stop it.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """
    require_engine(engine, None)
    volumes = [each if isinstance(each, Volume) else read_volume(each) for each in (moving, fixed)]
    called = [
        name if isinstance(each, Volume) else stem(Path(each))
        for name, each in zip(names, (moving, fixed), strict=True)
    ]
    affine, shape = _grid_of(called[1], volumes[1])
    registrar = engine_registrar(engine, spacing_mm(affine), watch=watch, device=device)
    world = align_volumes(volumes[1], volumes[0], prealign)
    here, there = (
        _input(name, volume, each, shape)
        for name, volume, each in zip(called, volumes, (world @ affine, affine), strict=True)
    )
    return register_sides(registrar, here, there, ())


def _grid_of(name: str, scan: Volume) -> tuple[Matrix, Shape]:
    """Affine and shape (z, y, x) of the scan's voxels turned to LPS, larger ones if they are many.

    Twice as large along the axes whose voxels are the smallest, until they are few enough.
    """
    turn, shape = to_upright_lps(scan.affine, scan.shape)
    if min(shape) < FEWEST:
        raise ScanError(f"{name}: has fewer than {FEWEST} voxels along an axis")
    affine = scan.affine @ turn
    while math.prod(shape) > MOST_VOXELS:
        size = spacing_mm(affine)
        z, y, x = (2 if mm < 1.5 * min(size) else 1 for mm in size)
        affine = affine @ np.diag([x, y, z, 1.0])
        affine[:3, 3] += affine[:3, :3] @ [(1 - 1 / step) / 2 for step in (x, y, z)]
        shape = (-(-shape[0] // z), -(-shape[1] // y), -(-shape[2] // x))
    return affine, shape


def _input(name: str, scan: Volume, affine: Matrix, shape: Shape) -> RegistrationInput:
    """A scan on the grid that an affine places in its own world, pre-alignment included."""
    if not inside(np.linalg.inv(scan.affine) @ affine, shape, scan.shape).any():
        raise ScanError(
            f"{name}: does not overlap with the other scan; choose a pre-alignment "
            "(center_of_mass or affine)"
        )
    grid = TrainingGrid(shape=shape, spacing_mm=spacing_mm(affine), affine=rows(affine))
    ready = preprocess(scan, None, PreprocessingConfig(), grid)
    return RegistrationInput(name, ready.image, None, ready.transform, scan)
