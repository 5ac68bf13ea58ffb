"""Building blocks that the networks share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_CHANNELS = 12
"""Below this, torch's batch normalisation on a CPU is faster on contiguous features."""

MANY_VOXELS = 2**16
"""From this grid size on, a GPU is faster with one matrix product for each slice."""


class ConvBlock(nn.Module):
    """3x3x3 convolution with padding 1 and bias, batch normalisation, LeakyReLU.

    (B, in, z, y, x) -> (B, out, ceil(z / stride), ceil(y / stride), ceil(x / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, slope: float, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm3d(out_channels)
        self.activation = nn.LeakyReLU(slope, inplace=True)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Apply the block; in evaluation the normalisation is folded into the convolution."""
        weight, bias = self.conv.weight, self.conv.bias
        assert bias is not None
        if not self.training:
            scale, shift = affine_of(self.norm)
            weight = weight * scale.view(-1, 1, 1, 1, 1)
            bias = bias * scale + shift
        features = self.convolve(weight, bias, *inputs)
        if self.training:
            if features.device.type == "cpu" and self.norm.num_features < FEW_CHANNELS:
                # with few channels, normalising channels-last features is 5 times slower
                features = features.contiguous()
            elif features.device.type == "cuda":
                # on a GPU it is channels-first features that take 4 to 10 times as long
                features = for_convolution(features)
            features = self.norm(features)
        result: Tensor = self.activation(features)
        return result

    def convolve(self, weight: Tensor, bias: Tensor, *inputs: Tensor) -> Tensor:
        """Apply the block's convolution to its input."""
        (features,) = inputs
        return conv3d(features, weight, bias, self.conv.stride[0], padding=1)


class DecoderBlock(ConvBlock):
    """A ConvBlock of upsampled coarse features, concatenated with those of a skip connection.

    (B, coarse, z, y, x) and (B, skip, Z, Y, X) -> (B, out, Z, Y, X).
    """

    def convolve(self, weight: Tensor, bias: Tensor, *inputs: Tensor) -> Tensor:
        """Apply the block's convolution to both inputs."""
        coarse, skip = inputs
        shape = skip.shape[2:]
        if skip.device.type != "cpu" or any(
            fine != 2 * size for fine, size in zip(shape, coarse.shape[2:], strict=True)
        ):
            features = torch.cat([upsample(coarse, shape), skip], dim=1)
            return conv3d(features, weight, bias, padding=1)
        channels = coarse.shape[1]
        fine = conv3d(skip, weight[:, channels:], bias, padding=1)
        fine += conv_of_upsampled(coarse, weight[:, :channels])
        return fine


def affine_of(norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Factor and offset, (C,) each, of a batch normalisation in evaluation."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


def conv_of_upsampled(coarse: Tensor, weight: Tensor) -> Tensor:
    """Compute ``conv3d(upsample(coarse, doubled), weight, padding=1)`` without upsampling.

    Both steps are linear, so each of the 8 positions of a fine voxel in its coarse voxel has its
    own 3x3x3 kernel on the coarse grid. With few output channels, this takes about half the time
    and an eighth of the memory.

    Parameters
    ----------
    coarse
        (B, in, z, y, x).
    weight
        (out, in, 3, 3, 3).

    Returns
    -------
    Tensor
        (B, out, 2z, 2y, 2x).
    """
    batch, channels, *grid = coarse.shape
    out = len(weight)
    with torch.autocast(coarse.device.type, enabled=False):
        lerp = weight.new_tensor(_FINE_TAPS_ON_COARSE)
        kernels = torch.einsum("oiabc,paj,qbk,rcl->pqroijkl", weight, lerp, lerp, lerp)
    padded = F.pad(for_convolution(coarse), (1, 1, 1, 1, 1, 1), mode="replicate")
    fine = conv3d(padded, kernels.reshape(8 * out, channels, 3, 3, 3))
    fine = fine.view(batch, 2, 2, 2, out, *grid).permute(0, 5, 1, 6, 2, 7, 3, 4)
    shape = [2 * size for size in grid]
    fine = fine.reshape(batch, -1, out)
    # upsampling repeats the border values, a padded convolution has zeros there: subtract what
    # the outermost fine voxels received from outside
    border, excess = _seen_outside(padded, weight)
    fine.scatter_add_(1, border.view(1, -1, 1).expand(batch, -1, out), -excess.to(fine.dtype))
    return fine.view(batch, *shape, out).permute(0, 4, 1, 2, 3)


# For the first and the second fine voxel in a coarse voxel: the weights of the coarse voxels
# before, at and after it (columns) in the fine voxels before, at and after it (rows).
_FINE_TAPS_ON_COARSE = (
    ((0.75, 0.25, 0.0), (0.25, 0.75, 0.0), (0.0, 0.75, 0.25)),
    ((0.25, 0.75, 0.0), (0.0, 0.75, 0.25), (0.0, 0.25, 0.75)),
)


def _seen_outside(padded: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices (n,) of the outermost fine voxels, and what they receive from outside.

    The second tensor is (B, n, out).
    """
    shape = [2 * (size - 2) for size in padded.shape[2:]]
    flat = torch.arange(math.prod(shape), device=padded.device).view(shape)
    border, excess = [], []
    for axis in range(3):
        for side in (0, -1):
            plane = padded.select(2 + axis, side)
            beyond = F.interpolate(plane, scale_factor=2, mode="bilinear", align_corners=False)
            beyond = beyond[:, :, 1:-1, 1:-1]
            # edges and corners are counted once, with the face of the first axis
            if axis > 0:
                beyond = F.pad(beyond[:, :, 1:-1], (0, 0, 1, 1))
            if axis > 1:
                beyond = F.pad(beyond[:, :, :, 1:-1], (1, 1))
            border.append(flat.select(axis, side).flatten())
            excess.append(F.conv2d(beyond, weight.select(2 + axis, side)).flatten(2))
    return torch.cat(border), torch.cat(excess, dim=2).transpose(1, 2)


class PointwiseConv(nn.Conv3d):
    """1x1x1 convolution by :func:`pointwise_conv`: (B, in, z, y, x) -> (B, out, z, y, x)."""

    def __init__(
        self, in_channels: int, out_channels: int, groups: int = 1, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, 1, groups=groups, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """Mix the channels of each group."""
        return pointwise_conv(features, self.weight, self.bias, self.groups)


def pointwise_conv(
    features: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1
) -> Tensor:
    """1x1x1 convolution as a matrix product; torch's own copies the input first on a CPU.

    Parameters
    ----------
    features
        (B, in, z, y, x).
    weight
        (out, in / groups, ...) with any trailing axes of length 1.
    bias
        (out,).
    groups
        Groups of channels that are mixed separately.

    Returns
    -------
    Tensor
        (B, out, z, y, x).
    """
    batch, channels, *grid = features.shape
    if features.device.type == "cuda" and groups == 1 and math.prod(grid) >= MANY_VOXELS:
        return pointwise_conv_by_slices(features, weight, bias)
    by_group = weight.view(groups, -1, channels // groups)
    grouped = features.reshape(batch, groups, channels // groups, -1)
    mixed = torch.matmul(by_group, grouped).view(batch, -1, *grid)
    if bias is not None:
        mixed += bias.view(-1, 1, 1, 1)
    return mixed


def pointwise_conv_by_slices(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`pointwise_conv` with a product for each slice, channels last.

    The gradient of the weight is then the sum of many products, which a GPU computes in
    parallel; one product over all voxels is a single long sum.
    """
    batch, channels, depth, height, width = features.shape
    rows = for_convolution(features).permute(0, 2, 3, 4, 1)
    rows = rows.reshape(batch * depth, height * width, channels)
    with torch.autocast(features.device.type, enabled=False):  # 16 bits are slower here
        columns = weight.view(1, -1, channels).transpose(1, 2).expand(len(rows), -1, -1)
        mixed = torch.bmm(rows.float(), columns)
    if bias is not None:
        mixed += bias
    return mixed.view(batch, depth, height, width, -1).permute(0, 4, 1, 2, 3)


def conv3d(
    features: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    """``F.conv3d`` with channels last; on a CPU by oneDNN if it is available.

    For a single float32 image of few channels torch would use ``slow_conv3d``, which takes up to
    17 times as long.
    """
    features = for_convolution(features)
    if features.device.type == "cuda" and features.shape[1] >= 32 and len(weight) % 8:
        # from 64 to 12 channels, cuDNN takes 10 times as long in 16 bits (docs/benchmarks.md)
        with torch.autocast("cuda", enabled=False):
            return F.conv3d(features.float(), weight, bias, stride, padding)
    if (
        len(features) > 1
        or features.device.type != "cpu"
        or features.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
        or not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
    ):
        return F.conv3d(features, weight, bias, stride, padding)
    triples = [padding] * 3, [stride] * 3, [1] * 3
    result: Tensor = torch.mkldnn_convolution(features, weight, bias, *triples, 1)
    return result


def for_convolution(features: Tensor) -> Tensor:
    """The same features with channels last in memory.

    This halves the time of a 3x3x3 convolution on a CPU, and that of the normalisation on a GPU.
    """
    if features.device.type not in ("cpu", "cuda"):
        return features
    return features.contiguous(memory_format=torch.channels_last_3d)


def mean_of_neighbours(image: Tensor) -> Tensor:
    """3x3x3 mean with zeros outside: 10 times as fast as ``avg_pool3d(3, 1, padding=1)``."""
    total = F.pad(image, (1, 1, 1, 1, 1, 1))
    for axis in (2, 3, 4):
        before, here, after = (total.narrow(axis, i, image.shape[axis]) for i in range(3))
        total = before + here
        total += after
    total /= 27
    return total


def upsample(features: Tensor, shape: Sequence[int]) -> Tensor:
    """Trilinear interpolation (half-pixel centres) to the grid ``shape``."""
    return F.interpolate(
        for_convolution(features), size=tuple(shape), mode="trilinear", align_corners=False
    )


def initialise(network: nn.Module) -> None:
    """Xavier-normal weights and zero biases for every convolution."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
