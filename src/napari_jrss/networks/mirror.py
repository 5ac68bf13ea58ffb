"""A segmentation network that looks at a scan and at its mirror image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from napari_jrss.losses import softmax


class Mirrored(nn.Module):
    """In evaluation mode, averages what a network finds in an image and in its mirror image.

    In training mode it is the network itself. The weights have the names that they have there.

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
        """Logits; in evaluation mode the logarithm of the mean of both probabilities, float32."""
        if self.training:
            return self.network(images)  # type: ignore[no-any-return]
        found, mirrored = softmax(self.network(images)), softmax(self.network(images.flip(-1)))
        for own, other in enumerate(self.classes):  # class by class, to spare memory
            found[:, own] += mirrored[:, other].flip(-1)
        return found.div_(2).clamp_(min=torch.finfo(found.dtype).tiny).log_()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The weights of the network, under its own names."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Put weights into the network, under its own names."""
        return self.network.load_state_dict(*args, **kwargs)
