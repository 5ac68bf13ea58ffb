"""Labels at a scan's own voxels: the fine network corrects what the teacher sees on its grid."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import grid_sample

from napari_jrss.geometry import Matrix, corners, map_points
from napari_jrss.inference.predict import evaluation, free_memory
from napari_jrss.io.predictions import Prediction
from napari_jrss.networks.fine import FineNetwork
from napari_jrss.preprocess.cost import BLOCK_BYTES, BYTES_PER_CLASS, BYTES_PER_VOXEL
from napari_jrss.snapshot import CaseScan, Label

HALO = 8
"""Voxels around a block that the network sees beside it."""
_CERTAIN = 0.98
"""Background of at least this confidence stays background."""

Box = tuple[slice, slice, slice]


@torch.no_grad()
def fine_label(
    network: FineNetwork, prediction: Prediction, scan: CaseScan, device: torch.device
) -> Label | None:
    """Class indices (z, y, x) on a scan's own voxels; None for a scan of another resolution.

    The scan is gone through block by block, so that memory stays below about 1 GiB, and only
    where the teacher finds a structure or isn't sure of the background.

    Parameters
    ----------
    network
        On `device`.
    prediction
        Of the teacher, on the training grid.
    scan
        The same case.
    device
        Where to compute.
    """
    if not network.knows(scan.finer):
        return None
    shape = scan.shape
    label = np.zeros(shape, prediction.label.dtype)
    active = possible(prediction)
    region = region_on_scan(active, scan)
    if region is None:
        return label
    with evaluation(network):
        for core in _blocks(region, _most_voxels(network.classes, device)):
            if not active[_on_grid(core, scan, active.shape)].any():
                continue
            around = tuple(
                slice(max(0, side.start - HALO), min(n, side.stop + HALO))
                for side, n in zip(core, shape, strict=True)
            )
            logits = network(_seen(prediction, scan, around, network.classes, device))
            within = tuple(
                slice(side.start - wide.start, side.stop - wide.start)
                for side, wide in zip(core, around, strict=True)
            )
            label[core] = logits[0].argmax(0)[within].cpu().numpy()
    return label


def _seen(
    prediction: Prediction,
    scan: CaseScan,
    box: tuple[slice, ...],
    classes: int,
    device: torch.device,
) -> Tensor:
    """The network's input in a box of the scan, (1, channels + C, z, y, x)."""
    images = torch.from_numpy(np.ascontiguousarray(scan.images[(slice(None), *box)]))
    z, y, x = (torch.arange(side.start, side.stop, dtype=torch.float32) for side in box)
    voxels = torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], dim=-1)
    shares = class_shares(prediction, voxels, scan.scan_to_grid, classes)
    return torch.cat([images, shares])[None].to(device)


def class_shares(
    prediction: Prediction, voxels: Tensor, scan_to_grid: Matrix, classes: int
) -> Tensor:
    """Probability of each class at places of a scan, interpolated linearly on the training grid.

    The two most probable classes are known; the others share what is left. Outside the training
    grid all is background.

    Parameters
    ----------
    prediction
        On the training grid.
    voxels
        (z, y, x, 3): places as voxels (x, y, z) of the scan.
    scan_to_grid
        As of :class:`~napari_jrss.snapshot.CaseScan`.
    classes
        Number C.

    Returns
    -------
    Tensor
        (C, z, y, x), floating point.
    """
    matrix = torch.from_numpy(scan_to_grid).to(voxels.dtype)
    where = voxels @ matrix[:3, :3].T + matrix[:3, 3]
    size = torch.tensor(prediction.label.shape[::-1])
    outside = ((where < -0.5) | (where > size - 0.5)).any(-1)
    # Only the part of the grid around these places is looked at.
    flat = where.reshape(-1, 3)
    low = torch.minimum(flat.amin(0).floor().long().clamp(min=0), size - 1)
    high = torch.minimum(flat.amax(0).ceil().long(), size - 1).clamp(min=low)
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(low.flip(0), high.flip(0), strict=True))
    coarse = _one_hot(prediction, box, classes)
    grid = (where - low) * (2 / (high - low).clamp(min=1)) - 1
    shares: Tensor = grid_sample(
        coarse[None].to(grid.dtype), grid[None], padding_mode="border", align_corners=True
    )[0]
    shares[:, outside] = 0
    shares[0, outside] = 1
    return shares


def _one_hot(prediction: Prediction, box: tuple[slice, ...], classes: int) -> Tensor:
    """The probability of each class in a part of the training grid, (C, z, y, x)."""
    first, sure = prediction.label[box], prediction.confidence[box]
    found = [(first, sure)]
    if prediction.second is not None and prediction.second_confidence is not None:
        found.append((prediction.second[box], prediction.second_confidence[box]))
    left = 1 - sum(share.astype(np.float32) for _, share in found)
    others = torch.from_numpy(np.maximum(left, 0) / max(1, classes - len(found)))
    shares = others[None].repeat(classes, 1, 1, 1)
    for label, share in reversed(found):
        index = torch.from_numpy(label.astype(np.int64))[None]
        shares.scatter_(0, index, torch.from_numpy(share.astype(np.float32))[None])
    return shares


def possible(prediction: Prediction) -> NDArray[np.bool_]:
    """Voxels (z, y, x) of the training grid where there may be a structure, or next to one."""
    unsure = (prediction.label > 0) | (prediction.confidence < _CERTAIN)
    grown: NDArray[np.bool_] = ndimage.binary_dilation(unsure, np.ones((3, 3, 3), bool))
    return grown


def region_on_scan(active: NDArray[np.bool_], scan: CaseScan) -> Box | None:
    """The box of the scan that holds all that is true on the training grid; None if nothing is."""
    found = ndimage.find_objects(active.view(np.uint8))
    if not found:
        return None
    ends = np.array([[side.start, side.stop - 1] for side in found[0]], float)[::-1].T
    placed = map_points(np.linalg.inv(scan.scan_to_grid), corners(ends))
    return _within(placed, scan.shape)


def _on_grid(box: Box, scan: CaseScan, shape: tuple[int, ...]) -> Box:
    """The box of the training grid that a box of the scan lies in."""
    ends = np.array([[side.start, side.stop - 1] for side in box], float)[::-1].T
    return _within(map_points(scan.scan_to_grid, corners(ends)), shape)


def _within(points: NDArray[np.float64], shape: tuple[int, ...]) -> Box:
    """The box (z, y, x) around points (x, y, z), as far as a volume reaches."""
    low, high = np.floor(points.min(0))[::-1], np.ceil(points.max(0))[::-1]
    z, y, x = (
        slice(int(np.clip(a, 0, n)), int(np.clip(b + 1, 0, n)))
        for a, b, n in zip(low, high, shape, strict=True)
    )
    return z, y, x


def _blocks(region: Box, voxels: int) -> Iterator[Box]:
    """Blocks that cover a region, each of at most so many voxels with its halo."""
    lengths = np.array([max(1, side.stop - side.start) for side in region])
    counts = np.ones(3, int)
    while True:
        sides = -(-lengths // counts)
        if np.prod(sides + 2 * HALO) <= voxels or sides.max() <= HALO:
            break
        counts[int(sides.argmax())] += 1
    edges = []
    for side, count in zip(region, counts, strict=True):
        cuts = np.linspace(side.start, side.stop, count + 1).round().astype(int)
        edges.append([slice(int(a), int(b)) for a, b in pairwise(cuts)])
    yield from product(*edges)


def _most_voxels(classes: int, device: torch.device) -> int:
    """Voxels of a block for the memory there is."""
    each = BYTES_PER_VOXEL + BYTES_PER_CLASS * classes
    return int(min(BLOCK_BYTES, free_memory(device) // 2) / each)
