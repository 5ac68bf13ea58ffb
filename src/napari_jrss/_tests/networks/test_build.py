from typing import Any

import pytest
import torch
from torch import nn

from napari_jrss.config import NetworkConfig
from napari_jrss.networks.build import (
    NETWORKS,
    build_registration_network,
    build_segmentation_network,
)
from napari_jrss.networks.obelisk import ObeliskLayer, ObeliskNetwork


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def config(name: str = "obelisk", **options: Any) -> NetworkConfig:
    return NetworkConfig.model_validate({"name": name, **options})


def test_parameters_are_those_of_the_reference() -> None:
    reference = config(leaky_slope=0.025)
    assert parameters(build_segmentation_network(reference, 9)) == 229_217
    assert parameters(build_segmentation_network(reference, 11)) == 230_129
    assert parameters(build_registration_network(config())) == 251_213
    assert parameters(build_registration_network(config(sample_channels="fixed"))) == 226_637
    assert parameters(build_segmentation_network(config("vm_unet"), 9)) == 329_497
    assert parameters(build_registration_network(config("voxelmorph"))) == 327_331


def test_slope_reaches_every_activation() -> None:
    network = build_segmentation_network(config(leaky_slope=0.05), 3)
    slopes = {m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.05}


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 24, 16), (13, 18, 21)])
def test_any_grid_size(name: str, shape: tuple[int, int, int]) -> None:
    image = torch.randn(2, 1, *shape)
    assert build_segmentation_network(config(name), 4)(image).shape == (2, 4, *shape)
    registration = build_registration_network(config(name, integration_steps=3))
    assert registration(image, image).shape == (2, 3, *shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("channels", [2, 3])
def test_segmentation_sees_all_images_and_registration_the_first(name: str, channels: int) -> None:
    torch.manual_seed(0)
    # sample_channels is of pairs: two images of one case aren't a pair
    settings = config(name, sample_channels="fixed")
    network = build_segmentation_network(settings, 3, channels=channels).eval()
    image = torch.randn(1, channels, 16, 16, 16)
    logits = network(image)
    assert logits.shape == (1, 3, 16, 16, 16)
    for channel in range(channels):
        other = image.clone()
        other[:, channel] += 1
        assert not torch.equal(network(other), logits)
    registration = build_registration_network(config(name))
    pair = torch.randn(2, 1, channels, 16, 16, 16)
    torch.testing.assert_close(registration(*pair), registration(*pair[:, :, :1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("steps", [0, 5])
def test_registration_starts_next_to_the_identity_and_learns(name: str, steps: int) -> None:
    torch.manual_seed(0)
    network = build_registration_network(config(name, integration_steps=steps))
    moving, fixed = torch.randn(2, 2, 1, 16, 16, 24)
    displacement = network(moving, fixed)
    assert 0 < displacement.abs().max() < 0.01
    displacement.square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # a bias before a batch normalisation has no effect
    assert [n for n in silent if not n.endswith("bias")] == []


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_batch_equals_single_images(name: str) -> None:
    torch.manual_seed(0)
    network = build_segmentation_network(config(name), 3).eval()
    images = torch.randn(3, 1, 16, 20, 24)
    with torch.inference_mode():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_weights_fit_with_and_without_dropout(name: str) -> None:
    torch.manual_seed(0)
    teacher = build_segmentation_network(config(name), 3)
    student = build_segmentation_network(config(name), 3, dropout=0.5)
    image = torch.randn(2, 1, 16, 16, 16)
    assert not torch.equal(student(image), student(image)), "dropout is off"
    student.load_state_dict(teacher.state_dict())
    assert torch.equal(student.eval()(image), teacher.eval()(image))


def test_unknown_network_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'nnunet'.*monai_unet, obelisk, unet, vm_unet"):
        build_segmentation_network(config("nnunet"), 3)
    with pytest.raises(ValueError, match="no_such_module"):
        build_registration_network(config("no_such_module:build"))


def own_network(config: NetworkConfig, channels: int, classes: int, dropout: float) -> nn.Module:
    return nn.Conv3d(channels, classes, 5, padding=2)


def test_anybodys_function_by_its_import_path() -> None:
    name = f"{__name__}:own_network"
    image = torch.randn(1, 1, 9, 10, 11)
    assert build_segmentation_network(config(name), 6)(image).shape == (1, 6, 9, 10, 11)
    displacement = build_registration_network(config(name))(image, image)
    assert displacement.shape == (1, 3, 9, 10, 11)
    assert displacement.abs().max() < 0.01


def test_obelisk_samples_where_the_offsets_say() -> None:
    layer = ObeliskLayer(channels=2, offsets=3, groups=2, out_channels=4, slope=0.2)
    offsets = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, -0.25, 0.5]])
    layer.offsets.data = offsets
    shape, grid = (9, 17, 33), (3, 5, 3)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in shape], indexing="ij")
    # an image that tells the place: linear interpolation is exact on it
    place = axes[0] + 10 * axes[1] + 100 * axes[2]
    samples = layer.sample(torch.stack([place, -place])[None], grid)
    assert samples.shape == (1, 2, 3 * 5 * 3, 3)
    z, y, x = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in grid], indexing="ij")
    for index, offset in enumerate(offsets):
        at = [axis + step for axis, step in zip((z, y, x), offset, strict=True)]
        inside = torch.stack([a.abs() <= 1 for a in at]).all(0)
        wanted = (at[0] + 10 * at[1] + 100 * at[2]) * inside
        for channel, sign in enumerate((1, -1)):
            found = samples[0, channel, :, index].view(grid)
            torch.testing.assert_close(found, sign * wanted, atol=1e-3, rtol=0)


def test_obelisk_offsets_learn() -> None:
    torch.manual_seed(0)
    layer = ObeliskLayer(channels=1, offsets=4, groups=2, out_channels=4, slope=0.2)
    image = torch.randn(2, 1, 12, 13, 14)
    layer.sample(image, (3, 4, 4)).square().sum().backward()
    gradient = layer.offsets.grad
    assert gradient is not None
    assert (gradient != 0).all()
    step = 1e-3
    for row, axis in ((0, 0), (1, 1), (2, 2)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                layer.offsets[row, axis] += sign * step
                values.append(float(layer.sample(image, (3, 4, 4)).double().square().sum()))
                layer.offsets[row, axis] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert float(gradient[row, axis]) == pytest.approx(slope, rel=0.1, abs=0.5)


def test_autocast_stays_close_to_float32() -> None:
    torch.manual_seed(0)
    network = ObeliskNetwork(1, 3).eval()
    image = torch.randn(1, 1, 24, 24, 24)
    wanted = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        got = network(image)
    assert (got.float() - wanted).abs().mean() < 0.02 * wanted.abs().mean()


def test_output_scale_multiplies_the_field() -> None:
    single = build_registration_network(config())
    scaled = build_registration_network(config(output_scale=8.0))
    scaled.load_state_dict(single.state_dict())
    moving, fixed = torch.randn(2, 1, 1, 16, 16, 16)
    torch.testing.assert_close(
        scaled.eval()(moving, fixed), 8 * single.eval()(moving, fixed), atol=1e-7, rtol=1e-4
    )
