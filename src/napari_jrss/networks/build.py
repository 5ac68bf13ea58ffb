"""Build a network from a :class:`~napari_jrss.config.NetworkConfig`.

Its name is a key of ``NETWORKS``, or ``"package.module:function"`` for a function of your own
with the signature of :data:`NetworkBuilder`. The function gets the settings, the numbers of
input and output channels and the dropout rate. It returns a module (B, in, z, y, x) ->
(B, out, z, y, x) that accepts any grid size. For registration, the module's last convolution
should be its attribute ``head``; otherwise a 1x1x1 convolution is appended.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from napari_jrss.config import NetworkConfig
from napari_jrss.errors import JRSSError
from napari_jrss.networks.obelisk import ObeliskNetwork
from napari_jrss.networks.spatial import integrate_velocity, resize_displacement
from napari_jrss.networks.unet import AnyGrid, UNet, VoxelMorphUNet

NetworkBuilder = Callable[[NetworkConfig, int, int, float], nn.Module]


class NetworkError(JRSSError):
    """There is no network of this name."""


def build_segmentation_network(
    config: NetworkConfig, classes: int, dropout: float = 0.0, channels: int = 1
) -> nn.Module:
    """Build a network from an image (B, channels, z, y, x) to logits (B, classes, z, y, x).

    Raises
    ------
    NetworkError
        There is no network ``config.name``.
    """
    every = config.model_copy(update={"sample_channels": "both"})  # a setting for pairs
    return _builder(config.name)(every, channels, classes, dropout)


def build_registration_network(config: NetworkConfig) -> RegistrationNetwork:
    """Build a network from a moving and a fixed image to a displacement field.

    Raises
    ------
    NetworkError
        There is no network ``config.name``.
    """
    backbone = _builder(config.name)(config, 2, 3, 0.0)
    return RegistrationNetwork(backbone, config.integration_steps, config.output_scale)


class RegistrationNetwork(nn.Module):
    """Predicts the displacement field that pulls a moving image onto a fixed one.

    Parameters
    ----------
    backbone
        (B, 2, z, y, x), moving and fixed image, -> (B, 3, z, y, x), voxels. Its last convolution
        is re-initialised with weights from N(0, 1e-5) and no bias, as in VoxelMorph, so that
        training starts next to the identity.
    integration_steps
        0: the backbone's output is the displacement. More: it is a stationary velocity field,
        integrated in so many squarings on a grid of half the size.
    output_scale
        Voxels per unit of the backbone's output.
    """

    def __init__(
        self, backbone: nn.Module, integration_steps: int = 0, output_scale: float = 1.0
    ) -> None:
        super().__init__()
        head = getattr(backbone, "head", None)
        if not isinstance(head, nn.Conv3d):
            head = nn.Conv3d(3, 3, 1)
            backbone = nn.Sequential(backbone, head)
        nn.init.normal_(head.weight, std=1e-5)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
        self.backbone = backbone
        self.integration_steps = integration_steps
        self.output_scale = output_scale

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Images (B, C, z, y, x) -> displacement (B, 3, z, y, x), voxels, float32.

        Of several channels the first counts.
        """
        features: Tensor = self.backbone(torch.cat([moving[:, :1], fixed[:, :1]], dim=1))
        output = features.float() * self.output_scale
        if self.integration_steps == 0:
            return output
        shape = output.shape[2:]
        half = [-(-size // 2) for size in shape]
        velocity = resize_displacement(output, half)
        displacement = integrate_velocity(velocity, self.integration_steps)
        return resize_displacement(displacement, shape)


def _obelisk(config: NetworkConfig, channels: int, classes: int, dropout: float) -> nn.Module:
    only_fixed = channels == 2 and config.sample_channels == "fixed"
    sampled = slice(1, 2) if only_fixed else slice(None)
    return ObeliskNetwork(channels, classes, config.leaky_slope, dropout, sampled)


def _unet(config: NetworkConfig, channels: int, classes: int, dropout: float) -> nn.Module:
    network = UNet(channels, classes, config.leaky_slope, dropout)
    # takes a quarter off a training step on a CPU; torch's types don't know the argument
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network


def _voxelmorph(config: NetworkConfig, channels: int, classes: int, dropout: float) -> nn.Module:
    return VoxelMorphUNet(channels, classes, config.leaky_slope, dropout)


def _monai_unet(config: NetworkConfig, channels: int, classes: int, dropout: float) -> nn.Module:
    from monai.networks.nets import UNet  # importing MONAI takes seconds

    network = UNet(
        spatial_dims=3,
        in_channels=channels,
        out_channels=classes,
        channels=(16, 16, 32, 64, 128),
        strides=(1, 2, 2, 2),
        num_res_units=1,
        act=("leakyrelu", {"negative_slope": config.leaky_slope}),
        norm="instance",
        dropout=dropout,
    )
    # instance normalisation needs more than one voxel at the lowest resolution
    return AnyGrid(network, multiple=8, least=16)


NETWORKS: Mapping[str, NetworkBuilder] = MappingProxyType(
    {
        "unet": _unet,
        "obelisk": _obelisk,
        "vm_unet": _voxelmorph,
        "voxelmorph": _voxelmorph,
        "monai_unet": _monai_unet,
    }
)


def check_network(config: NetworkConfig) -> None:
    """Raise :class:`NetworkError` if there is no network ``config.name``."""
    _builder(config.name)


def _builder(name: str) -> NetworkBuilder:
    if name in NETWORKS:
        return NETWORKS[name]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        known = ", ".join(sorted(NETWORKS))
        raise NetworkError(f"unknown network {name!r}; known: {known}, or 'module:function'")
    try:
        builder: NetworkBuilder = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise NetworkError(f"network {name!r} cannot be imported: {error}") from error
    return builder
