import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_jrss.networks.blocks import (
    ConvBlock,
    DecoderBlock,
    PointwiseConv,
    conv3d,
    conv_of_upsampled,
    mean_of_neighbours,
    pointwise_conv_by_slices,
    upsample,
)


def gradients(result: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(result, of, torch.linspace(-1, 1, result.numel()).view_as(result))


@pytest.mark.parametrize("grid", [(3, 4, 6), (1, 2, 5)])
def test_convolution_of_upsampled_features_to_the_border(grid: tuple[int, int, int]) -> None:
    coarse = torch.randn(2, 5, *grid, requires_grad=True)
    weight = torch.randn(3, 5, 3, 3, 3, requires_grad=True)
    fine = upsample(coarse, [2 * size for size in grid])
    wanted = F.conv3d(fine, weight, padding=1)
    got = conv_of_upsampled(coarse, weight)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        gradients(got, coarse, weight), gradients(wanted, coarse, weight), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fine", [(6, 8, 10), (5, 8, 9)])
def test_decoder_block_is_the_block_of_the_concatenation(
    training: bool, fine: tuple[int, int, int]
) -> None:
    block = DecoderBlock(7, 3, slope=0.1)
    block.norm.running_mean = torch.randn(3)
    block.norm.running_var = torch.rand(3) + 0.5
    nn.init.normal_(block.norm.weight)
    nn.init.normal_(block.norm.bias)
    coarse, skip = torch.randn(2, 4, 3, 4, 5), torch.randn(2, 3, *fine)
    block.train(training)
    plain = nn.Sequential(block.conv, block.norm, block.activation).train(training)
    wanted = plain(torch.cat([upsample(coarse, fine), skip], dim=1))
    torch.testing.assert_close(block(coarse, skip), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_folded_normalisation_changes_nothing(stride: int) -> None:
    block = ConvBlock(2, 4, slope=0.1, stride=stride)
    for _ in range(5):
        block(torch.randn(2, 2, 8, 9, 10) * 3 + 1)
    image = torch.randn(1, 2, 8, 9, 10)
    plain = nn.Sequential(block.conv, block.norm, block.activation).eval()
    torch.testing.assert_close(block.eval()(image), plain(image), atol=1e-5, rtol=1e-5)
    weights = tuple(block.parameters())
    torch.testing.assert_close(
        gradients(block(image), *weights), gradients(plain(image), *weights), atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize(("groups", "bias"), [(1, True), (2, False)])
def test_pointwise_convolution_is_torchs(groups: int, bias: bool) -> None:
    block = PointwiseConv(6, 4, groups, bias)
    for features in (torch.randn(2, 6, 3, 4, 5), torch.randn(2, 3, 4, 5, 6).movedim(-1, 1)):
        wanted = F.conv3d(features, block.weight, block.bias, groups=groups)
        torch.testing.assert_close(block(features), wanted)


def test_mean_of_neighbours_is_average_pooling() -> None:
    image = torch.randn(2, 2, 4, 5, 6)
    torch.testing.assert_close(mean_of_neighbours(image), F.avg_pool3d(image, 3, 1, 1))


@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_convolution_by_slices_as_gpus_do_it(bias: bool) -> None:
    block = PointwiseConv(5, 7, bias=bias)
    features = torch.randn(2, 5, 3, 4, 6, requires_grad=True)
    by_slices = pointwise_conv_by_slices(features, block.weight, block.bias)
    results = by_slices, block(features)
    torch.testing.assert_close(*results)
    wanted = [features, *block.parameters()]
    torch.testing.assert_close(*(gradients(result, *wanted) for result in results))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_is_torchs_for_one_image_and_for_more(batch: int, stride: int) -> None:
    features = torch.randn(batch, 3, 6, 7, 8, requires_grad=True)
    weight = torch.randn(5, 3, 3, 3, 3, requires_grad=True)
    bias = torch.randn(5, requires_grad=True)
    wanted = F.conv3d(features, weight, bias, stride, padding=1)
    got = conv3d(features, weight, bias, stride, padding=1)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        gradients(got, features, weight, bias),
        gradients(wanted, features, weight, bias),
        atol=1e-3,
        rtol=1e-4,
    )
