"""VoxelMorph (Balakrishnan et al. 2019): its network of 327,331 parameters, displacements.

With labels it is trained as Mono-Reg is (Eq. 10), the paper's weakly supervised VoxelMorph;
without, on image similarity and smoothness alone. VM-UNet is its U-Net as a segmenter, trained as
Mono-Seg is (Eq. 2, foreground).
"""

from __future__ import annotations

from napari_jrss.experiments.recipe import (
    Task,
    Trained,
    of_the_foreground,
    train_registration,
    train_segmentation,
)
from napari_jrss.networks.build import build_registration_network, build_segmentation_network


def train(task: Task) -> Trained:
    """Both variants: whether there are labels is the snapshot's matter."""
    task.seed()
    config = task.config.registration_network.model_copy(update={"name": "voxelmorph"})
    network = build_registration_network(config)
    train_registration(task, network, "voxelmorph")
    return Trained(registration=network)


def train_vm_unet(task: Task) -> Trained:
    """Dice on the labelled cases."""
    task.seed()
    config = task.config.segmentation_network.model_copy(update={"name": "vm_unet"})
    network = build_segmentation_network(config, task.snapshot.classes)
    train_segmentation(of_the_foreground(task), network, "vm_unet")
    return Trained(segmentation=network)
