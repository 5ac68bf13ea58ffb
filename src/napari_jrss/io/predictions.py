"""A teacher's predictions on disk, as zarr: label, confidence and uncertainty of each case."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from napari_jrss.errors import ScanError
from napari_jrss.io.atomic import new_folder
from napari_jrss.io.zarr_check import read_array
from napari_jrss.snapshot import Label


@dataclass(frozen=True)
class Prediction:
    """A teacher's prediction for one case, arrays (z, y, x) on the training grid but for the last.

    Attributes
    ----------
    label
        Most probable class of each voxel.
    confidence
        Its probability, 0 to 1.
    uncertainty
        KL divergence between teacher and student (Eq. 5), in nats; None before the first
        joint round.
    second
        Second most probable class of each voxel; None in a prediction of an older version.
    second_confidence
        Its probability.
    scan_label
        Classes on the scan's own voxels, turned to LPS, by the fine network; None where there is
        none, or it wasn't asked for.
    """

    label: Label
    confidence: NDArray[np.float16]
    uncertainty: NDArray[np.float16] | None = None
    second: Label | None = None
    second_confidence: NDArray[np.float16] | None = None
    scan_label: Label | None = None


def prediction_path(folder: Path, case_id: str) -> Path:
    """Path of the prediction of a case in a folder of predictions."""
    return folder / f"{case_id}.zarr"


def write_prediction(folder: Path, case_id: str, prediction: Prediction) -> None:
    """Write the prediction of a case; it replaces an earlier one when it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    path = prediction_path(folder, case_id)
    with new_folder(path) as unfinished:
        group = zarr.open_group(unfinished, mode="w")
        for entry in fields(prediction):
            array = getattr(prediction, entry.name)
            if array is not None:
                group.create_array(
                    entry.name,
                    data=np.ascontiguousarray(array),
                    chunks=array.shape,
                    config={"write_empty_chunks": True},
                )
        if path.exists():
            shutil.rmtree(path)


def read_prediction(folder: Path, case_id: str, on_scan: bool = True) -> Prediction:
    """Read a case's prediction; a KeyError if there is none, a ScanError if it is damaged.

    Without `on_scan` its label on the scan's voxels, which may be large, isn't read.
    """
    path = prediction_path(folder, case_id)
    if not path.exists():
        raise KeyError(f"{folder} holds no prediction of case {case_id}")
    if path.is_symlink():
        raise ScanError(f"{path}: a symbolic link, which is not followed")
    label, confidence = read_array(path / "label"), read_array(path / "confidence")
    uncertainty, second, second_confidence = (
        read_array(path / name) if (path / name).exists() else None
        for name in ("uncertainty", "second", "second_confidence")
    )
    for array in (confidence, uncertainty, second_confidence):
        if array is not None and (array.dtype.kind != "f" or array.shape != label.shape):
            raise ScanError(f"{path}: its arrays don't fit each other")
    for array in (label, second):
        if array is not None and (array.dtype.kind != "u" or array.shape != label.shape):
            raise ScanError(f"{path}: its label holds no classes")
    scan_label = None
    if on_scan and (path / "scan_label").exists():
        scan_label = read_array(path / "scan_label")
        if scan_label.dtype.kind != "u":
            raise ScanError(f"{path}: its label holds no classes")
    return Prediction(label, confidence, uncertainty, second, second_confidence, scan_label)
