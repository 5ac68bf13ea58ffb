"""The network against a plain transcription of its description, with torch's own operations."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_jrss.networks.blocks import ConvBlock
from napari_jrss.networks.obelisk import ObeliskLayer, ObeliskNetwork

SLOPE = 0.1


def plain_block(block: ConvBlock, features: Tensor) -> Tensor:
    convolved = F.conv3d(features, block.conv.weight, block.conv.bias, block.conv.stride, padding=1)
    return F.leaky_relu(block.norm(convolved), SLOPE)


def plain_blocks(blocks: nn.Sequential, features: Tensor) -> Tensor:
    for block in blocks:
        assert isinstance(block, ConvBlock)
        features = plain_block(block, features)
    return features


def plain_layer(layer: ObeliskLayer, image: Tensor, grid: tuple[int, ...]) -> Tensor:
    samples = []
    for offset in layer.offsets:
        points = F.affine_grid(
            torch.eye(3, 4).expand(len(image), 3, 4), [len(image), 1, *grid], align_corners=True
        )
        samples.append(F.grid_sample(image, points + offset.flip(0), align_corners=True))
    # the offsets of the first channel, then those of the second
    stacked = torch.stack(samples, dim=2).flatten(1, 2)
    features = F.leaky_relu(F.conv3d(stacked, layer.mix.weight, groups=layer.mix.groups), SLOPE)
    for norm, conv, _ in layer.dense:
        features = torch.cat(
            [features, F.leaky_relu(F.conv3d(norm(features), conv.weight), SLOPE)], dim=1
        )
    norm, conv, _ = layer.out
    return F.leaky_relu(F.conv3d(norm(features), conv.weight), SLOPE)


def plain(network: ObeliskNetwork, image: Tensor) -> Tensor:
    def up(features: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(features, size=like.shape[2:], mode="trilinear", align_corners=False)

    def grid(divisor: int) -> tuple[int, ...]:
        return tuple(-(-size // divisor) for size in image.shape[2:])

    seen = image[:, network.sampled]
    once = F.avg_pool3d(seen, 3, stride=1, padding=1)
    twice = F.avg_pool3d(once, 3, stride=1, padding=1)
    x1 = plain_block(network.encode_full, image)
    x2 = plain_blocks(network.encode_half, x1)
    x = plain_blocks(network.encode_quarter, x2)
    eighth = plain_layer(network.obelisk_eighth, twice, grid(8))
    quarter = plain_layer(network.obelisk_quarter, once, grid(4))
    x = plain_block(network.decode_quarter, torch.cat([x, up(eighth, x)], dim=1))
    x = plain_block(network.decode_half, torch.cat([up(x, x2), up(quarter, x2), x2], dim=1))
    x = plain_block(network.decode_full, torch.cat([up(x, x1), x1], dim=1))
    return F.conv3d(x, network.head.weight, network.head.bias)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(16, 24, 32), (17, 13, 22)])
@pytest.mark.parametrize(
    ("channels", "classes", "sampled"),
    [(1, 4, slice(None)), (2, 3, slice(None)), (2, 3, slice(1, 2))],
)
def test_network_is_its_description(
    channels: int, classes: int, sampled: slice, shape: tuple[int, ...], training: bool
) -> None:
    torch.manual_seed(0)
    network = ObeliskNetwork(channels, classes, SLOPE, sampled=sampled)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.uniform_(module.running_var, 0.5, 2)
    network.train(training)
    image = torch.randn(2, channels, *shape)
    got, wanted = network(image), plain(network, image)
    torch.testing.assert_close(got, wanted, atol=2e-3, rtol=1e-3)
    weights = list(network.parameters())
    cotangent = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad(got, weights, cotangent),
        torch.autograd.grad(wanted, weights, cotangent),
        strict=True,
    ):
        # rounding may carry single voxels across the kink of a LeakyReLU
        assert (a - b).norm() <= 2e-2 * max(float(b.norm()), 1.0)
