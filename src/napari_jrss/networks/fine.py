"""The fine network: it corrects a teacher's probabilities at a scan's own voxels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from napari_jrss.networks.unet import UNet

_LEAST = 0.01
"""Probabilities count as at least this much, so that a wrong but sure teacher can be corrected."""

_OTHERS = 1.25
"""Voxels of other sizes than this factor beyond those of its training are left to the teacher."""


class FineNetwork(nn.Module):
    """Adds to the logarithm of coarse probabilities: (B, channels + C, z, y, x) -> (B, C, z, y, x).

    The input holds the images of a scan and then the probability of each class, carried from the
    training grid. What is added is 0 before any training, so that the network begins with the
    teacher's result.

    Parameters
    ----------
    classes
        Number C of classes, background included.
    channels
        Number of images.
    """

    finer: Tensor

    def __init__(self, classes: int, channels: int = 1) -> None:
        super().__init__()
        self.classes = classes
        # How many times finer than the training grid the scans are that it learned from.
        self.register_buffer("finer", torch.ones(2))
        self.network = UNet(channels + classes, classes)
        nn.init.zeros_(self.network.head.weight)
        assert self.network.head.bias is not None
        nn.init.zeros_(self.network.head.bias)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def knows(self, finer: float) -> bool:
        """Whether scans that are so many times finer than the training grid are like its own."""
        least, most = self.finer.tolist()
        return bool(least / _OTHERS <= finer <= most * _OTHERS)

    def forward(self, image: Tensor) -> Tensor:
        """Images and probabilities -> logits, on the same voxels."""
        image = image.contiguous(memory_format=torch.channels_last_3d)
        coarse = image[:, -self.classes :].float().clamp(min=_LEAST).log_()
        logits: Tensor = coarse + self.network(image)
        return logits
