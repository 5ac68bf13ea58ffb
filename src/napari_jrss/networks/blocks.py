"""Building blocks that the networks share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ConvBlock(nn.Sequential):
    """3x3x3 convolution with padding 1 and bias, batch normalisation, LeakyReLU.

    (B, in, z, y, x) -> (B, out, ceil(z / stride), ceil(y / stride), ceil(x / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, slope: float, stride: int = 1) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1),
            nn.BatchNorm3d(out_channels),
            nn.LeakyReLU(slope, inplace=True),
        )


def upsample(features: Tensor, shape: Sequence[int]) -> Tensor:
    """Trilinear interpolation (half-pixel centres) to the grid ``shape``."""
    return F.interpolate(features, size=tuple(shape), mode="trilinear", align_corners=False)


def initialise(network: nn.Module) -> None:
    """Xavier-normal weights and zero biases for every convolution."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
