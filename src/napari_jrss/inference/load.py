"""The networks of a round, read from its folder, in evaluation mode on a device.

Each function raises :class:`~napari_jrss.errors.ProjectError` if the round's ``config.json`` can't
be read, and :class:`~napari_jrss.networks.weights.CheckpointError` if the weights are missing,
damaged, or of another network.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from napari_jrss.config import RefinementConfig
from napari_jrss.inference.refine import RefinedRegistration, Watch, to_the_end
from napari_jrss.io.round_files import RoundFiles
from napari_jrss.networks.build import build_registration_network, build_segmentation_network
from napari_jrss.networks.weights import load_weights


def load_teacher(files: RoundFiles, device: torch.device) -> nn.Module:
    """The teacher: images (B, 1, z, y, x) -> logits (B, C, z, y, x)."""
    return _segmentation(files, files.teacher, device)


def load_student(files: RoundFiles, device: torch.device) -> nn.Module | None:
    """The student of a joint round, as the teacher; None for a pre-training."""
    return _segmentation(files, files.student, device) if files.student.exists() else None


def load_registration(files: RoundFiles, device: torch.device) -> nn.Module:
    """The registration network: moving and fixed images -> displacement, voxels.

    Images are (B, 1, z, y, x), the displacement is (B, 3, z, y, x).
    """
    network = build_registration_network(files.training_config().registration_network)
    load_weights(network, files.registration)
    return network.to(device).eval()


def load_refined(files: RoundFiles, device: torch.device, watch: Watch = to_the_end) -> nn.Module:
    """The registration network, each field refined on its pair with what the teacher sees."""
    config = RefinementConfig(similarity=files.training_config().registration.similarity)
    registration, teacher = load_registration(files, device), load_teacher(files, device)
    return RefinedRegistration(registration, teacher, config, watch)


def _segmentation(files: RoundFiles, weights: Path, device: torch.device) -> nn.Module:
    described = files.description()
    settings = described.training.segmentation_network
    network = build_segmentation_network(settings, len(described.classes))
    load_weights(network, weights)
    return network.to(device).eval()
