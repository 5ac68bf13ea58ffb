"""A round whose registration network answers every pair with the same translation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from napari_jrss.config import preset
from napari_jrss.io.round_files import RoundDescription
from napari_jrss.networks.build import build_registration_network, build_segmentation_network
from napari_jrss.networks.weights import save_tensors
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundOutcome


def add_translating_round(project: Project, shift: Sequence[float]) -> int:
    """Promote such a round, with a teacher as it is born; its number.

    `shift` is u in voxels (z, y, x): the fixed image's point p is the moving image's p + u.
    """
    config = preset("smoke")
    names = list(project.table.names)
    description = RoundDescription(training=config, classes=names).model_dump_json()
    snapshot = project.snapshot()
    entry = project.start_round(None, description, snapshot.label_versions)
    network = build_registration_network(config.registration_network)
    *_, head = (m for m in network.modules() if isinstance(m, torch.nn.Conv3d))
    assert head.bias is not None
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(shift) / config.registration_network.output_scale)
    teacher = build_segmentation_network(config.segmentation_network, len(names))
    save_tensors(entry.files.registration, network.state_dict(), {"stage": "mono_registration"})
    save_tensors(entry.files.teacher, teacher.state_dict(), {"stage": "mono_segmentation"})
    return project.finish_round(entry.number, RoundOutcome.FINISHED, promote=True).number
