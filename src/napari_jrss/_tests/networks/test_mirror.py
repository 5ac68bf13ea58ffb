"""A network that sees mirror images, too: what it finds there, and its weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from napari_jrss.networks.mirror import Mirrored

LEFT_AND_RIGHT = (0, 2, 1)


class BySide(nn.Module):
    """Finds class 1 in the first half of the x axis and class 2 in the other, whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(3.0))

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 3, *images.shape[2:])
        half = images.shape[-1] // 2
        logits[:, 1, ..., :half] = 1
        logits[:, 2, ..., half:] = 1
        return self.sharpness * logits


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 1, 4, 6, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def convolution() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv3d(1, 3, 3, padding=1)


def test_left_stays_left(images: Tensor) -> None:
    plain = BySide()
    expected = plain(images).softmax(1)
    mirrored = Mirrored(plain, LEFT_AND_RIGHT)
    assert torch.allclose(mirrored.eval()(images).exp(), expected)
    confused = Mirrored(plain, (0, 1, 2)).eval()(images).exp()
    assert torch.allclose(confused[:, 1], confused[:, 2])


def test_a_scan_and_its_mirror_image_get_mirrored_labels(
    images: Tensor, convolution: nn.Module
) -> None:
    network = Mirrored(convolution, LEFT_AND_RIGHT).eval()
    here, there = network(images).exp(), network(images.flip(-1)).exp()
    assert torch.allclose(here, there[:, LEFT_AND_RIGHT].flip(-1), atol=1e-6)
    assert torch.allclose(here.sum(1), torch.ones(8, 4, 6, 10))
    plain = convolution(images).softmax(1)
    other = convolution(images.flip(-1)).softmax(1)[:, LEFT_AND_RIGHT].flip(-1)
    assert torch.allclose(here, (plain + other) / 2, atol=1e-6)


def test_in_training_it_is_the_network(images: Tensor, convolution: nn.Module) -> None:
    network = Mirrored(convolution, LEFT_AND_RIGHT).train()
    assert torch.equal(network(images), convolution(images))
    network(images).square().mean().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in convolution.parameters())


def test_weights_have_the_names_of_the_network(convolution: nn.Module) -> None:
    mirrored = Mirrored(convolution, LEFT_AND_RIGHT)
    assert mirrored.state_dict().keys() == convolution.state_dict().keys()
    other = Mirrored(nn.Conv3d(1, 3, 3, padding=1), LEFT_AND_RIGHT)
    other.load_state_dict(convolution.state_dict())
    assert torch.equal(other.network.weight, convolution.weight)
    twin = copy.deepcopy(other)
    assert twin.classes == LEFT_AND_RIGHT
    nn.init.zeros_(twin.network.weight)
    assert not torch.equal(twin.network.weight, other.network.weight)
