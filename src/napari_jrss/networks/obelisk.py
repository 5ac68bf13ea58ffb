"""The hybrid-obelisk-CNN (Heinrich, Oktay, Bouteldja 2019), backbone of both networks of JRSS.

A small U-Net whose coarse levels are replaced by two obelisk layers: sparse convolutions with
trainable positions, which sample the smoothed input image itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_jrss.networks.blocks import (
    ConvBlock,
    DecoderBlock,
    PointwiseConv,
    affine_of,
    for_convolution,
    initialise,
    mean_of_neighbours,
    pointwise_conv,
    upsample,
)
from napari_jrss.networks.spatial import sample

OFFSET_STD = 0.05


class ObeliskLayer(nn.Module):
    """Samples an image at trainable offsets around a coarse grid, then mixes the samples.

    The offsets are in normalised coordinates (the image spans -1 to 1 along each axis), one row
    z, y, x each. Sampling is trilinear, zero outside. The samples, ``channels * offsets`` per
    grid point, pass a grouped 1x1x1 convolution, three dense units and a last 1x1x1 convolution.
    """

    def __init__(
        self, channels: int, offsets: int, groups: int, out_channels: int, slope: float
    ) -> None:
        super().__init__()
        self.offsets = nn.Parameter(torch.randn(offsets, 3) * OFFSET_STD)
        self.mix = PointwiseConv(channels * offsets, 128, groups)
        self.dense = nn.ModuleList(_DenseUnit(width, 32, slope) for width in (128, 160, 192))
        self.out = _DenseUnit(224, out_channels, slope)
        self.slope = slope
        self.stretch = (1.0, 1.0, 1.0)

    def forward(self, image: Tensor, grid_shape: tuple[int, int, int]) -> Tensor:
        """(B, channels, z, y, x) -> (B, out_channels, *grid_shape)."""
        mixed = self.mixed(self.sample(image, grid_shape))
        features = F.leaky_relu(mixed, self.slope).unflatten(2, grid_shape)
        for unit in self.dense:
            features = torch.cat([features, unit(features)], dim=1)
        result: Tensor = self.out(features)
        return result

    def sample(self, image: Tensor, grid_shape: tuple[int, int, int]) -> Tensor:
        """Image values at all offsets around all grid points, (B, channels, points, offsets)."""
        # bfloat16 cannot hold these coordinates
        with torch.autocast(image.device.type, enabled=False):
            offsets = (self.offsets * self.offsets.new_tensor(self.stretch)).float().flip(-1)
            # the samples around one grid point come together: they are close in memory
            points = _grid_points(grid_shape, image.device).unsqueeze(1) + offsets
            samples = sample(image.float(), points.expand(len(image), -1, -1, -1).unsqueeze(3))
        return samples.squeeze(-1)

    def mixed(self, samples: Tensor) -> Tensor:
        """The grouped convolution of samples (B, channels, points, offsets): (B, 128, points).

        Its input channels are all offsets of the first channel, then those of the next. The
        samples are not copied for it, but for three channels and other numbers.
        """
        batch, channels, points, offsets = samples.shape
        if self.mix.groups % channels:  # a group takes parts of several channels
            inputs = samples.transpose(2, 3).reshape(batch, channels * offsets, points, 1, 1)
            return torch.as_tensor(self.mix(inputs)).flatten(2)
        own = self.mix.groups // channels  # groups of one channel
        weight = self.mix.weight.view(channels, own, -1, offsets // own)
        parts = samples.unflatten(3, (own, -1)).transpose(2, 4)
        products = [torch.matmul(weight[:, i], parts[:, :, :, i]) for i in range(own)]
        together = products[0] if own == 1 else torch.stack(products, dim=2)
        return together.reshape(batch, -1, points)


@contextmanager
def seeing_tiles(network: nn.Module, whole: Sequence[int], tile: Sequence[int]) -> Iterator[None]:
    """Let obelisk layers sample as far, in voxels, in a tile as in the whole image.

    Their offsets are fractions of the input's extent, which is smaller for a tile.

    Parameters
    ----------
    network
        Its obelisk layers are changed until the end of the context.
    whole, tile
        Shapes (z, y, x) in voxels.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, ObeliskLayer)]
    z, y, x = ((w - 1) / max(t - 1, 1) for w, t in zip(whole, tile, strict=True))
    try:
        for layer in layers:
            layer.stretch = (z, y, x)
        yield
    finally:
        for layer in layers:
            layer.stretch = (1.0, 1.0, 1.0)


def _grid_points(shape: Sequence[int], device: torch.device) -> Tensor:
    """Points (z * y * x, 3), components x, y, z, from -1 to 1 along each axis."""
    axes = [
        torch.linspace(-1, 1, size, device=device) if size > 1 else torch.zeros(1, device=device)
        for size in shape
    ]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], dim=-1).view(-1, 3)


class _DenseUnit(nn.Sequential):
    """Batch normalisation, 1x1x1 convolution, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, slope: float) -> None:
        super().__init__(
            nn.BatchNorm3d(in_channels),
            PointwiseConv(in_channels, out_channels),
            nn.LeakyReLU(slope, inplace=True),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Apply the unit; in evaluation the normalisation is folded into the convolution."""
        norm, mix, activation = self
        assert isinstance(norm, nn.BatchNorm3d)
        assert isinstance(mix, PointwiseConv)
        if self.training:
            mixed = mix(norm(features))
        else:
            scale, shift = affine_of(norm)
            weight = mix.weight.flatten(1)
            mixed = pointwise_conv(features, weight * scale, weight @ shift)
        result: Tensor = activation(mixed)
        return result


class ObeliskNetwork(nn.Module):
    """Hybrid-obelisk-CNN: (B, in, z, y, x) -> (B, out, z, y, x), for any grid size.

    Parameters
    ----------
    in_channels, out_channels
        Number of images and of classes for segmentation; 2 and 3 for registration.
    slope
        LeakyReLU slope: 0.2 in JRSS, 0.025 in the reference implementation.
    dropout
        Rate of channel dropout after the last quarter-resolution encoder map and after the last
        map that is upsampled. The map before the head has one channel for each class, which
        must not be dropped. Weights fit networks of any rate.
    sampled
        The input channels that the obelisk layers sample; all by default.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        slope: float = 0.2,
        dropout: float = 0.0,
        sampled: slice = slice(None),
    ) -> None:
        super().__init__()
        seen = len(range(in_channels)[sampled])
        self.sampled = sampled
        self.encode_full = ConvBlock(in_channels, 4, slope)
        self.encode_half = nn.Sequential(
            ConvBlock(4, 16, slope, stride=2), ConvBlock(16, 16, slope)
        )
        self.encode_quarter = nn.Sequential(
            ConvBlock(16, 32, slope, stride=2), ConvBlock(32, 32, slope), ConvBlock(32, 32, slope)
        )
        self.obelisk_quarter = ObeliskLayer(seen, 128, 2, 16, slope)
        self.obelisk_eighth = ObeliskLayer(seen, 512, 4, 32, slope)
        self.decode_quarter = ConvBlock(64, 32, slope)
        self.decode_half = DecoderBlock(64, 12, slope)
        self.decode_full = DecoderBlock(16, out_channels, slope)
        self.dropout = nn.Dropout3d(dropout)
        self.head = PointwiseConv(out_channels, out_channels, bias=True)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, in, z, y, x) -> logits or displacements (B, out, z, y, x)."""
        shape = image.shape[2:]
        once = mean_of_neighbours(image[:, self.sampled])
        twice = mean_of_neighbours(once)
        full = for_convolution(self.encode_full(image))
        half = self.encode_half(full)
        features = self.dropout(self.encode_quarter(half))
        coarse = self.obelisk_eighth(twice, _divided(shape, 8))
        fine = self.obelisk_quarter(once, _divided(shape, 4))

        features = torch.cat([features, upsample(coarse, features.shape[2:])], dim=1)
        features = torch.cat([self.decode_quarter(features), fine], dim=1)
        features = self.dropout(self.decode_half(features, half))
        features = self.decode_full(features, full)
        result: Tensor = self.head(features)
        return result


def _divided(shape: torch.Size, divisor: int) -> tuple[int, int, int]:
    depth, height, width = (-(-size // divisor) for size in shape)
    return depth, height, width
