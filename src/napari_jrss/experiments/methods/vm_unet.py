"""VM-UNet: VoxelMorph's U-Net as a segmenter, trained as Mono-Seg is (Eq. 2, foreground)."""

from __future__ import annotations

from napari_jrss.experiments.recipe import Task, Trained, of_the_foreground, train_segmentation
from napari_jrss.networks.build import build_segmentation_network


def train(task: Task) -> Trained:
    """Dice on the labelled cases."""
    task.seed()
    config = task.config.segmentation_network.model_copy(update={"name": "vm_unet"})
    network = build_segmentation_network(config, task.snapshot.classes)
    train_segmentation(of_the_foreground(task), network, "vm_unet")
    return Trained(segmentation=network)
