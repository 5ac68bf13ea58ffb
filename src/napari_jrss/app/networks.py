"""A round's networks, read back from its folder."""

from __future__ import annotations

import torch
from torch import nn

from napari_jrss.app.description import config_of, description_of
from napari_jrss.config import RefinementConfig
from napari_jrss.inference.refine import RefinedRegistration, Watch, to_the_end
from napari_jrss.networks.build import build_registration_network, build_segmentation_network
from napari_jrss.project.records import Round
from napari_jrss.training.checkpoint import load_into, load_tensors
from napari_jrss.training.round import REGISTRATION, STUDENT, TEACHER


def load_teacher(entry: Round, device: torch.device) -> nn.Module:
    """The segmentation network that a round ended with."""
    return _segmentation(entry, TEACHER, device)


def load_student(entry: Round, device: torch.device) -> nn.Module | None:
    """The student of a joint round; None for the pre-training."""
    return None if entry.parent is None else _segmentation(entry, STUDENT, device)


def load_registration(entry: Round, device: torch.device) -> nn.Module:
    """The registration network that a round ended with."""
    path = entry.folder / REGISTRATION
    network = build_registration_network(config_of(entry).registration_network)
    load_into(network, load_tensors(path)[0], path)
    return network.to(device).eval()


def load_refined(entry: Round, device: torch.device, watch: Watch = to_the_end) -> nn.Module:
    """The same, each field improved on its pair with what the round's teacher sees."""
    config = RefinementConfig(similarity=config_of(entry).registration.similarity)
    return RefinedRegistration(
        load_registration(entry, device), load_teacher(entry, device), config, watch
    )


def _segmentation(entry: Round, name: str, device: torch.device) -> nn.Module:
    path = entry.folder / name
    classes = len(description_of(entry).classes)
    network = build_segmentation_network(config_of(entry).segmentation_network, classes)
    load_into(network, load_tensors(path)[0], path)
    return network.to(device).eval()
