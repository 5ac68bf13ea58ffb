"""Initial: no registration beyond what preprocessing did (its affine pre-alignment, if any)."""

from __future__ import annotations

import numpy as np

from napari_jrss.experiments.recipe import FieldModule, Task, Trained


def train(task: Task) -> Trained:
    """Nothing to train: the field is zero."""
    return Trained(registration=FieldModule(lambda moving, fixed: np.zeros((3, *fixed.shape))))
