"""Fields from labelled to unlabelled scans, along which training moves labelled scans and labels.

A labelled scan that is moved along a part of the field to another scan looks like anatomy between
the two, and its label moves with it (Zhao et al. 2019, Data augmentation using learned
transformations for one-shot medical image segmentation). Along the whole field a label says what
the other scan may hold. The fields come from the images alone.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import avg_pool3d

from napari_jrss.config import RefinementConfig, TrainingConfig
from napari_jrss.inference.refine import IMAGES_ALONE, IMAGES_QUICKLY, register_images
from napari_jrss.snapshot import CohortSnapshot, Image
from napari_jrss.training.augment import follow_field
from napari_jrss.training.events import (
    Cancelled,
    Event,
    PairRegistered,
    StageFinished,
    StageStarted,
)
from napari_jrss.training.loop import Cancel, stop_requested
from napari_jrss.training.sampling import draw_cases, step_seed

MOST_FIELDS = 24
"""Pairs of a labelled and an unlabelled scan that are registered for a training."""
MOST_VOXELS = 700_000
"""Of the grid on which fields are found."""
FIELD_SCALES = (0.3, 1.2)
"""The part of a field that a labelled scan is moved along is drawn between these."""

Fields = Mapping[str, Mapping[str, Tensor]]
"""By labelled case and unlabelled one: displacement field (3, z, y, x) in voxels onto that scan."""


SETTINGS: Mapping[str, RefinementConfig] = {
    "deformation": IMAGES_QUICKLY,
    "propagation": IMAGES_ALONE,
}
"""How pairs are registered in the two stages that do so: to deform scans, or to carry labels."""


def pairs_before(config: TrainingConfig, snapshot: CohortSnapshot, *, joint: bool) -> int:
    """How many pairs are registered before a round, or before the pre-training."""
    wanted = config.registering_stage(joint=joint)
    return min(MOST_FIELDS, len(snapshot.labelled) * len(snapshot.unlabelled)) if wanted else 0


def pairs_to_register(
    config: TrainingConfig, snapshot: CohortSnapshot, number: int
) -> list[tuple[str, str]]:
    """The pairs of round `number` (0: the pre-training), each labelled case as often as others."""
    rng = np.random.default_rng(step_seed(config.seed, "deformation", number))
    most = pairs_before(config, snapshot, joint=number > 0)
    pairs: dict[tuple[str, str], None] = {}
    while len(pairs) < most:
        for labelled in draw_cases(snapshot.labelled, len(snapshot.labelled), rng):
            pairs[labelled, draw_cases(snapshot.unlabelled, 1, rng)[0]] = None
    return list(pairs)[:most]


def find_fields(
    config: TrainingConfig, snapshot: CohortSnapshot, number: int, fabric: Fabric, cancel: Cancel
) -> Generator[Event, None, Fields | None]:
    """The fields of the pairs of round `number`; None if cancelled."""
    stage = config.registering_stage(joint=number > 0)
    fields: dict[str, dict[str, Tensor]] = {}
    pairs = pairs_to_register(config, snapshot, number)
    if not pairs:
        return fields
    yield StageStarted(stage=stage, steps=len(pairs))
    for done in range(0, len(pairs), fabric.world_size):  # each process registers one of the next
        if stop_requested(cancel, fabric):
            yield Cancelled(stage=stage, step=done)
            return None
        following = pairs[done : done + fabric.world_size]
        own = following[min(fabric.global_rank, len(following) - 1)]
        field = field_between(snapshot, *own, fabric.device, SETTINGS[stage])
        found = torch.as_tensor(fabric.all_gather(field)) if fabric.world_size > 1 else field[None]
        for (moving, fixed), each in zip(following, found):  # noqa: B905
            fields.setdefault(moving, {})[fixed] = each
            yield PairRegistered(stage=stage, moving=moving, fixed=fixed)
    yield StageFinished(stage=stage)
    return fields


def deformed(
    grid: Tensor, cases: Sequence[str], fields: Fields, share: float, rng: np.random.Generator
) -> Tensor:
    """Sampling grids (B, z, y, x, 3) of labelled cases, a `share` of them moved along a field.

    Each is moved along a part of a field of its case, or stays as it is.
    """
    moved = []
    for each, case in zip(grid, cases, strict=True):
        chosen, known = each[None], list(fields.get(case, {}).values())
        if known and rng.random() < share:
            field = known[int(rng.integers(len(known)))].to(grid.device).float()
            chosen = follow_field(chosen, float(rng.uniform(*FIELD_SCALES)) * field[None])
        moved.append(chosen)
    return torch.cat(moved)


def field_between(
    snapshot: CohortSnapshot,
    moving: str,
    fixed: str,
    device: torch.device,
    settings: RefinementConfig,
) -> Tensor:
    """Field (3, z, y, x), float16, that pulls a case onto another by their images alone.

    On large grids it is found, and kept, at half the resolution or less, in voxels of that.
    """
    here, there = (_coarse(snapshot.arrays.image(case), device) for case in (moving, fixed))
    return register_images(here, there, snapshot.spacing_mm, settings, device=device).half()


def _coarse(image: Image, device: torch.device) -> Tensor:
    """An image (z, y, x), halved until it is small enough."""
    volume = torch.from_numpy(image)[None, None].to(device)
    while volume.numel() > MOST_VOXELS:
        volume = avg_pool3d(volume, 2, ceil_mode=True)
    return volume[0, 0]
