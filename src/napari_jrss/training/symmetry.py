"""Whether left and right are alike in a cohort, so that mirror images tell something, too."""

from __future__ import annotations

import logging

import numpy as np
from torch import nn

from napari_jrss.config import TrainingConfig
from napari_jrss.labels import other_sides
from napari_jrss.networks.build import build_segmentation_network
from napari_jrss.networks.mirror import Mirrored
from napari_jrss.snapshot import CohortSnapshot, Image

_logger = logging.getLogger(__name__)

_MOST_SCANS = 5
_LONGEST = 64  # voxels along an axis that are compared
# Correlation of a scan and its mirror image: heads have 0.92 to 0.97, crops around one hippocampus
# 0.12 to 0.28.
_ALIKE = 0.7
# Of a structure's voxels on one side, as many must lie on the other: smaller number over larger.
_BALANCED = 0.5
_FEWEST_VOXELS = 30  # fewer tell nothing
_MOST_MIRRORED_VOTERS = 5


def segmentation_network(
    config: TrainingConfig, snapshot: CohortSnapshot, dropout: float = 0.0
) -> nn.Module:
    """The network of a training, which sees mirror images, too, where left and right are alike."""
    network = build_segmentation_network(
        config.segmentation_network, snapshot.classes, dropout, snapshot.inputs
    )
    if not config.mirror_image:
        return network
    mirror = mirror_classes(snapshot)
    if mirror is None:
        _logger.info("left and right aren't alike: mirror images aren't segmented")
        return network
    _logger.info("left and right are alike: what is found in mirror images counts, too")
    return Mirrored(network, mirror)


def mirror_of_votes(snapshot: CohortSnapshot, voters: int) -> tuple[int, ...] | None:
    """What each class is in the mirror, if this many labelled scans vote with their mirror images.

    Up to five do, where left and right are alike; with more it isn't worth twice the time.
    """
    return mirror_classes(snapshot) if voters <= _MOST_MIRRORED_VOTERS else None


def mirror_classes(snapshot: CohortSnapshot) -> tuple[int, ...] | None:
    """What each class of a cohort is in the mirror; None where left and right aren't alike.

    They are alike if the labelled scans are like their mirror images, each structure has about as
    many voxels on the left as it, or its other side, has on the right, and each structure with a
    side in its name has the other side, too.
    """
    others = other_sides(snapshot.class_names)
    if others is None:
        return None
    correlations, counts = [], np.zeros((2, snapshot.classes))
    for case in snapshot.labelled[:_MOST_SCANS]:
        correlation, middle = mirror_plane(snapshot.arrays.image(case))
        correlations.append(correlation)
        label = snapshot.arrays.label(case)
        low, high = label[..., : int(np.ceil(middle))], label[..., int(np.floor(middle)) + 1 :]
        for side, part in enumerate((low, high)):
            found = np.bincount(part.ravel(), minlength=snapshot.classes)
            counts[side] += found[: snapshot.classes]  # without ignored voxels
    if not correlations or np.median(correlations) < _ALIKE:
        return None
    mirrored = counts[::-1, others]
    shared, whole = np.minimum(counts, mirrored).sum(0), np.maximum(counts, mirrored).sum(0)
    lopsided = (shared < _BALANCED * whole) & (whole >= _FEWEST_VOXELS)
    return None if lopsided[1:].any() else others


def mirror_plane(image: Image) -> tuple[float, float]:
    """The plane across x about which an image (z, y, x) is most like its mirror image.

    Returns
    -------
    correlation, middle
        Pearson's correlation of the two where they overlap; the plane's place in voxels.
    """
    step = max(1, -(-max(image.shape) // _LONGEST))
    coarse = image[::step, ::step, ::step]
    size = coarse.shape[-1]
    found = []
    for shift in range(-(size // 4), size // 4 + 1):
        part = coarse[..., max(0, shift) : size + min(0, shift)]
        part = part - part.mean()
        spread = float((part * part).sum())
        shared = float((part * part[..., ::-1]).sum())
        found.append((shared / spread if spread > 0 else 0.0, shift))
    correlation, shift = max(found)
    return correlation, step * (size - 1 + shift) / 2
