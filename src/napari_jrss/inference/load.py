"""The networks of a round, read from its folder, in evaluation mode on a device.

Each function raises :class:`~napari_jrss.errors.ProjectError` if the round's ``config.json`` can't
be read, and :class:`~napari_jrss.networks.weights.CheckpointError` if the weights are missing,
damaged, or of another network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from napari_jrss.inference.device import find_device
from napari_jrss.inference.fine import fine_label
from napari_jrss.inference.predict import predict_case
from napari_jrss.inference.refine import NoDisplacement, RefinedRegistration
from napari_jrss.inference.watch import Watch, to_the_end
from napari_jrss.io.predictions import Prediction
from napari_jrss.io.round_files import RoundFiles
from napari_jrss.networks.build import build_registration_network, build_segmentation_network
from napari_jrss.networks.fine import FineNetwork
from napari_jrss.networks.mirror import Mirrored
from napari_jrss.networks.weights import CheckpointError, load_weights
from napari_jrss.snapshot import CaseScan, Image


def load_teacher(files: RoundFiles, device: torch.device) -> nn.Module:
    """The teacher: images (B, channels, z, y, x) -> logits (B, C, z, y, x)."""
    return _segmentation(files, files.teacher, device)


def load_student(files: RoundFiles, device: torch.device) -> nn.Module:
    """The student, as the teacher; only a joint round has one."""
    return _segmentation(files, files.student, device)


class Predictor(Protocol):
    """A round's teacher as a function."""

    def __call__(self, image: Image, scan: Callable[[], CaseScan] | None = None) -> Prediction:
        """Predict a case from its image (z, y, x), or (channels, z, y, x), on the training grid.

        `scan` gives the same case on its own voxels, for its label there. It is called only in
        rounds that have a network for these. None: the label of the training grid is enough.
        """
        ...


def load_predictor(files: RoundFiles, device: str, *, with_student: bool) -> Predictor:
    """The round's teacher as a function: an image (z, y, x) -> its prediction.

    Of several channels the function gets (channels, z, y, x); another number of them than the
    teacher was trained on is a :class:`~napari_jrss.networks.weights.CheckpointError`.

    Parameters
    ----------
    files
        The round's folder.
    device
        See :func:`napari_jrss.inference.device.find_device`.
    with_student
        Whether the uncertainty is predicted too, for which the round needs a student.
    """
    torch_device = find_device(device)
    teacher = load_teacher(files, torch_device)
    student = load_student(files, torch_device) if with_student else None
    channels = files.description().channels

    fine = load_fine(files, torch_device)

    def predict(image: Image, scan: Callable[[], CaseScan] | None = None) -> Prediction:
        given = 1 if image.ndim == 3 else len(image)
        if given != max(1, len(channels)):
            names = ", ".join(channels) or "one image"
            raise CheckpointError(f"the teacher sees {names} of each scan, not {given} images")
        prediction = predict_case(teacher, image, torch_device, student)
        if fine is None or scan is None:
            return prediction
        return replace(prediction, scan_label=fine_label(fine, prediction, scan(), torch_device))

    return predict


def load_fine(files: RoundFiles, device: torch.device) -> FineNetwork | None:
    """The network for the scans' own voxels, if the round has one."""
    if not files.fine.exists():
        return None
    described = files.description()
    network = FineNetwork(len(described.classes), max(1, len(described.channels)))
    load_weights(network, files.fine)
    return network.to(device).eval()


def load_registration(files: RoundFiles, device: torch.device) -> nn.Module:
    """The registration network: moving and fixed images -> displacement, voxels.

    Images are (B, channels, z, y, x), the displacement is (B, 3, z, y, x). In rounds that train no
    such network each field is found by refinement alone.
    """
    if not files.training_config().trains_registration:
        return load_refined(files, device)
    return _registration(files, device)


def _registration(files: RoundFiles, device: torch.device) -> nn.Module:
    if not files.training_config().trains_registration:
        return NoDisplacement()
    network = build_registration_network(files.training_config().registration_network)
    load_weights(network, files.registration)
    return network.to(device).eval()


def load_refined(files: RoundFiles, device: torch.device, watch: Watch = to_the_end) -> nn.Module:
    """The registration network, each field refined on its pair with what the teacher sees."""
    registration, teacher = _registration(files, device), load_teacher(files, device)
    return RefinedRegistration(registration, teacher, watch=watch)


def _segmentation(files: RoundFiles, weights: Path, device: torch.device) -> nn.Module:
    described = files.description()
    settings = described.training.segmentation_network
    inputs = max(1, len(described.channels))
    classes = len(described.classes)
    network = build_segmentation_network(settings, classes, channels=inputs)
    mirror = load_weights(network, weights, inputs).get("mirror")
    if mirror is not None:
        each_once = sorted(map(repr, range(classes)))
        if not isinstance(mirror, list) or sorted(map(repr, mirror)) != each_once:
            raise CheckpointError(f"{weights}: what its classes are in the mirror is unreadable")
        network = Mirrored(network, mirror)
    return network.to(device).eval()
