"""Slices that a report shows: one test case segmented, one pair registered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from napari_jrss.experiments.recipe import Trained
from napari_jrss.inference.predict import displacement_field, predict_case, warp_array
from napari_jrss.snapshot import CaseArrays, Label

EXAMPLES = "examples.npz"


def write_examples(
    folder: Path,
    trained: Trained,
    arrays: CaseArrays,
    case: str,
    pair: tuple[str, str],
    device: torch.device,
) -> None:
    """Write the axial slice (y, x) that shows most structures, of images and labels.

    Names: ``case_image``, ``case_truth``, ``case_label``; ``moving_image``, ``moving_label``,
    ``fixed_image``, ``fixed_label``, ``warped_image``, ``warped_label``.
    """
    slices: dict[str, np.ndarray] = {}
    if trained.segmentation is not None:
        image, truth = arrays.image(case), arrays.label(case)
        z = busiest_slice(truth)
        label = predict_case(trained.segmentation, image, device).label
        slices |= {"case_image": image[z], "case_truth": truth[z], "case_label": label[z]}
    if trained.registration is not None:
        moving, fixed = pair
        field = displacement_field(
            trained.registration, arrays.image(moving), arrays.image(fixed), device
        )
        z = busiest_slice(arrays.label(fixed))
        slices |= {
            "moving_image": arrays.image(moving)[z],
            "moving_label": arrays.label(moving)[z],
            "fixed_image": arrays.image(fixed)[z],
            "fixed_label": arrays.label(fixed)[z],
            "warped_image": warp_array(arrays.image(moving), field)[z],
            "warped_label": warp_array(arrays.label(moving), field, nearest=True)[z],
        }
    # savez's parameters are arrays, whatever its annotation says
    np.savez_compressed(folder / EXAMPLES, **slices)  # type: ignore[arg-type]


def busiest_slice(label: Label) -> int:
    """The axial slice with most structures, and among these with most of their voxels."""
    shown = [(len(np.unique(plane)), int(np.count_nonzero(plane))) for plane in label]
    return shown.index(max(shown))
