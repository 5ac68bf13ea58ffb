"""What a round is told, and whether it can be run at all; nothing here needs PyTorch."""

from __future__ import annotations

import json

from napari_jrss.config import TrainingConfig
from napari_jrss.errors import JRSSError
from napari_jrss.snapshot import CohortSnapshot


class RoundError(JRSSError):
    """A round that can't be run as asked."""


def describe(snapshot: CohortSnapshot, config: TrainingConfig, rounds_left: int = 0) -> str:
    """Text of a round's ``config.json``: settings, cases and the label versions used.

    `rounds_left` is the number of rounds that the person asked for after this one, so that an
    interrupted series goes on as it was meant.
    """
    description = {
        "training": config.model_dump(mode="json"),
        "classes": list(snapshot.class_names),
        "spacing_mm": list(snapshot.spacing_mm),
        "shape": list(snapshot.shape),
        "labelled": list(snapshot.labelled),
        "unlabelled": list(snapshot.unlabelled),
        "validation": list(snapshot.validation),
        "label_versions": dict(snapshot.label_versions),
        "rounds_left": rounds_left,
    }
    return json.dumps(description, indent=1)


def check_trainable(snapshot: CohortSnapshot, joint: bool) -> None:
    """Raise :class:`RoundError` if there is nothing that a round could learn from."""
    if not snapshot.labelled:
        raise RoundError("no training case has a label: label at least one")
    if len(snapshot.training) < 2:
        raise RoundError("training needs at least two training cases, labelled or not")
    if snapshot.classes < 2:
        raise RoundError("there is no structure to learn: the label table has a background only")
    if joint and not snapshot.unlabelled:
        raise RoundError(
            "a joint round needs unlabelled training cases, and all of them are labelled: add "
            "scans, or ask for no round after the pre-training"
        )
