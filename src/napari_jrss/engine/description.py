"""What a round is told in its ``config.json``; light, so that it can be written without PyTorch."""

from __future__ import annotations

import json

from napari_jrss.config import TrainingConfig
from napari_jrss.data.batches import CohortSnapshot


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
