"""U-Nets: a small one with batch normalisation, VoxelMorph's, and a wrapper for any grid size."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UNet(nn.Module):
    """A small U-Net: (B, in, z, y, x) -> (B, out, z, y, x), for any grid size.

    Three levels of 16, 32 and 64 channels (Çiçek et al. 2016), each of two convolutions with
    batch normalisation and LeakyReLU; max-pooling down, a 1x1x1
    convolution and linear interpolation up. In evaluation
    mode a voxel's logits depend on the 44 voxels around it alone, so that crops, tiles and whole
    scans agree.

    Parameters
    ----------
    in_channels, out_channels
        Numbers of channels.
    slope
        LeakyReLU slope.
    dropout
        Rate of channel dropout after the deepest and the last feature map.
    """

    WIDTHS = (16, 32, 64)

    def __init__(
        self, in_channels: int, out_channels: int, slope: float = 0.2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        ways = pairwise((in_channels, *self.WIDTHS))
        self.encoder = nn.ModuleList(_two_convolutions(into, out, slope) for into, out in ways)
        upwards = list(pairwise(reversed(self.WIDTHS)))
        self.narrow = nn.ModuleList(nn.Conv3d(a, b, 1, bias=False) for a, b in upwards)
        self.decoder = nn.ModuleList(_two_convolutions(2 * b, b, slope) for _, b in upwards)
        self.dropout = nn.Dropout3d(dropout)
        self.head = nn.Conv3d(self.WIDTHS[0], out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, in, z, y, x) -> logits (B, out, z, y, x)."""
        features, skipped = image, []
        for level, block in enumerate(self.encoder):
            if level > 0:
                features = F.max_pool3d(features, 2, ceil_mode=True)
            features = block(features)
            skipped.append(features)
        features = self.dropout(skipped.pop())
        for narrow, block in zip(self.narrow, self.decoder, strict=True):
            finer = skipped.pop()
            size = finer.shape[2:]
            coarse = F.interpolate(narrow(features), size, mode="trilinear", align_corners=False)
            features = block(torch.cat([coarse, finer], dim=1))
        result: Tensor = self.head(self.dropout(features))
        return result


def _two_convolutions(into: int, out: int, slope: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (into, out):
        layers += [
            nn.Conv3d(width, out, 3, padding=1, bias=False),
            nn.BatchNorm3d(out),
            nn.LeakyReLU(slope, inplace=True),
        ]
    return nn.Sequential(*layers)


class VoxelMorphUNet(nn.Module):
    """VoxelMorph's network: (B, in, z, y, x) -> (B, out, z, y, x), for any grid size.

    Convolutions with LeakyReLU and no normalisation: 16, 32, 32, 32 channels with max-pooling,
    four times 32 with nearest upsampling and concatenation, then 32, 16, 16 and the head. With
    2 inputs and 3 outputs it is VoxelMorph; with 1 input and C outputs, the paper's VM-UNet.

    Parameters
    ----------
    in_channels, out_channels
        Numbers of channels.
    slope
        LeakyReLU slope, 0.2 in VoxelMorph.
    dropout
        Rate of channel dropout after the last encoder map and the last decoder map.
    """

    def __init__(
        self, in_channels: int, out_channels: int, slope: float = 0.2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.encoder = _convolutions((in_channels, 16, 32, 32, 32), slope)
        self.decoder = nn.ModuleList(
            _convolutions((width, 32), slope)[0] for width in (32, 64, 64, 64)
        )
        self.final = nn.Sequential(*_convolutions((48, 32, 16, 16), slope))
        self.dropout = nn.Dropout3d(dropout)
        self.head = nn.Conv3d(16, out_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, in, z, y, x) -> logits or displacements (B, out, z, y, x)."""
        features, skipped = image, []
        for block in self.encoder:
            features = block(features)
            skipped.append(features)
            features = F.max_pool3d(features, 2, ceil_mode=True)
        features = self.dropout(features)
        for block in self.decoder:
            finer = skipped.pop()
            features = F.interpolate(block(features), size=finer.shape[2:], mode="nearest")
            features = torch.cat([features, finer], dim=1)
        result: Tensor = self.head(self.dropout(self.final(features)))
        return result


def _convolutions(widths: tuple[int, ...], slope: float) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(nn.Conv3d(into, out, 3, padding=1), nn.LeakyReLU(slope, inplace=True))
        for into, out in pairwise(widths)
    )


class AnyGrid(nn.Module):
    """Lets a network that needs certain grid sizes take any, by padding and cropping.

    Parameters
    ----------
    network
        (B, in, z, y, x) -> (B, out, z, y, x).
    multiple
        The length of each axis must be a multiple of this.
    least
        Smallest length of an axis: 0, or a multiple of `multiple`.
    """

    def __init__(self, network: nn.Module, multiple: int, least: int = 0) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple
        self.least = least

    def forward(self, image: Tensor) -> Tensor:
        """The network's output on the image's own grid."""
        depth, height, width = image.shape[2:]
        missing = [max(-size % self.multiple, self.least - size) for size in (width, height, depth)]
        padded = F.pad(image, [side for size in missing for side in (0, size)], mode="replicate")
        result: Tensor = self.network(padded)
        return result[:, :, :depth, :height, :width]
