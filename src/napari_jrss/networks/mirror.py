"""A segmentation network for anatomy whose left and right are alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from napari_jrss.losses import softmax


class Mirrored(nn.Module):
    """Learns from mirrored images, too, and averages what it finds in an image and in its mirror.

    In training mode half of the images, drawn at random, pass through the network mirrored, and
    what is found in them is mirrored back, so that labels stay as they are. In evaluation mode the
    probabilities of the image and of its mirror image are averaged. The weights have the names that
    they have in the network itself.

    Parameters
    ----------
    network
        (B, channels, z, y, x) -> logits (B, C, z, y, x), x from the patient's right to left.
    classes
        The class that each of the C classes is in the mirror: itself, or its other side.
    """

    def __init__(self, network: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.classes = tuple(classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the images; in evaluation mode logarithms of probabilities, float32."""
        if not self.training:
            return self._average(images)
        chosen = (torch.rand(len(images)) < 0.5).view(-1, 1, 1, 1, 1).to(images.device)
        found = self.network(torch.where(chosen, images.flip(-1), images))
        return torch.where(chosen, found[:, list(self.classes)].flip(-1), found)

    def _average(self, images: Tensor) -> Tensor:
        """Logarithm of the mean of both probabilities; class by class, to spare memory."""
        found, mirrored = softmax(self.network(images)), softmax(self.network(images.flip(-1)))
        for own, other in enumerate(self.classes):
            found[:, own] += mirrored[:, other].flip(-1)
        return found.div_(2).clamp_(min=torch.finfo(found.dtype).tiny).log_()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The weights of the network, under its own names."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Put weights into the network, under its own names."""
        return self.network.load_state_dict(*args, **kwargs)
