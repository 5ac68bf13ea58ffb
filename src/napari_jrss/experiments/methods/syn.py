"""Registration without training: none at all, or SyN of ANTs (Avants et al. 2008).

SyN comes through antspyx: affine, then symmetric normalisation. ``train`` takes the package's
defaults: mutual information, and no iterations at full resolution. ``train_cc`` takes
cross-correlation, and iterations at every resolution. The paper doesn't say which it used.
"""

from __future__ import annotations

import numpy as np

from napari_jrss.experiments.recipe import FieldModule, Task, Trained
from napari_jrss.inference.partners import syn


def train_initial(task: Task) -> Trained:
    """No registration beyond what preprocessing did (its affine pre-alignment, if any)."""
    return Trained(registration=FieldModule(lambda moving, fixed: np.zeros((3, *fixed.shape))))


def train(task: Task) -> Trained:
    """Nothing to train: each pair is optimised by itself."""
    return Trained(registration=FieldModule(syn))


def train_cc(task: Task) -> Trained:
    """The same with cross-correlation (radius 4) down to full resolution."""
    return Trained(registration=FieldModule(syn_cc))


def syn_cc(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """SyN with cross-correlation and (100, 70, 20) iterations."""
    return syn(moving, fixed, syn_metric="CC", syn_sampling=4, reg_iterations=(100, 70, 20))
