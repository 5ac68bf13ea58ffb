"""Whether a round can be trained on a snapshot; nothing here needs PyTorch."""

from __future__ import annotations

import numpy as np

from napari_jrss.config import TrainingConfig
from napari_jrss.errors import JRSSError
from napari_jrss.preprocess.cost import MOST_ON_OWN_VOXELS
from napari_jrss.snapshot import CohortSnapshot


class RoundError(JRSSError):
    """A round that can't be run as asked."""


def check_trainable(snapshot: CohortSnapshot, joint: bool) -> None:
    """Refuse a snapshot that no round could learn from.

    Parameters
    ----------
    snapshot
        The cases and labels of the round.
    joint
        Whether it is a joint round, which needs unlabelled cases; else a pre-training.

    Raises
    ------
    RoundError
        With the reason, and what to do.
    """
    if not snapshot.labelled:
        raise RoundError("no training case has a label: label at least one")
    if len(snapshot.training) < 2:
        raise RoundError("training needs at least two training cases, labelled or not")
    if snapshot.classes < 2:
        raise RoundError("there is no structure to learn: the label table has only a background")
    if joint and not snapshot.unlabelled:
        raise RoundError(
            "a joint round needs unlabelled training cases, and all of them are labelled: add "
            "scans, or ask for no round after the pre-training"
        )


def check_devices(config: TrainingConfig, devices: int) -> None:
    """Refuse batches that are too small to be shared; :class:`RoundError`."""
    images = config.segmentation.batch_size
    if config.joint.student == "registered":
        images = min(images, 2 * max(1, images // 2))  # pairs
    if config.trains_registration:
        images = min(images, config.registration.batch_size)
    if images < devices:
        raise RoundError(
            f"{devices} devices can't share a step of {images} images: take fewer devices, or "
            "larger batch sizes"
        )


def fine_wanted(config: TrainingConfig, snapshot: CohortSnapshot) -> bool:
    """Whether the fine stage runs: it is asked for, and the labelled scans are finer."""
    return config.fine.steps > 0 and usual_finer(snapshot) >= config.fine.least_finer


def scans_read(config: TrainingConfig, snapshot: CohortSnapshot) -> tuple[str, ...]:
    """The cases whose scans a round reads at their own voxels: none without the fine stage."""
    if not fine_wanted(config, snapshot):
        return ()
    drawn = snapshot.unlabelled[:MOST_ON_OWN_VOXELS]
    return (*snapshot.labelled, *snapshot.validation, *drawn)


def usual_finer(snapshot: CohortSnapshot) -> float:
    """How many times finer than the training grid the labelled scans are, the middle of them.

    0 where they aren't at hand.
    """
    if snapshot.scans is None or not snapshot.labelled:
        return 0.0
    return float(np.median([snapshot.scans.finer(case) for case in snapshot.labelled]))
