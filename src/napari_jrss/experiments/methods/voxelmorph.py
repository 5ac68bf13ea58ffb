"""VoxelMorph (Balakrishnan et al. 2019): its network of 327,331 parameters, displacements.

With labels it is trained as Mono-Reg is (Eq. 10), the paper's weakly supervised VoxelMorph;
without, on image similarity and smoothness alone.
"""

from __future__ import annotations

from napari_jrss.experiments.recipe import Task, Trained, train_registration
from napari_jrss.networks.build import RegistrationNetwork, build_registration_network


def train(task: Task) -> Trained:
    """Both variants: whether there are labels is the snapshot's matter."""
    task.seed()
    network = build(task)
    train_registration(task, network, "voxelmorph")
    return Trained(registration=network)


def build(task: Task) -> RegistrationNetwork:
    """The network, with the settings that Mono-Reg's has."""
    config = task.config.registration_network.model_copy(update={"name": "voxelmorph"})
    return build_registration_network(config)
