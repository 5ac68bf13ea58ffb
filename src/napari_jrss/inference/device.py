"""Device, and for training precision and processes, which lightning-fabric brings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from napari_jrss.errors import JRSSError
from napari_jrss.threads import available_cores, step_back

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_logger = logging.getLogger(__name__)


class DeviceError(JRSSError):
    """The device is unknown, or this machine doesn't have it."""


def find_device(device: str = "auto") -> torch.device:
    """The first device of a kind.

    Parameters
    ----------
    device
        ``cpu``, ``cuda``, ``mps``, or ``auto``: CUDA where there is one, else the CPU.

    Raises
    ------
    DeviceError
        If the device is unknown, or not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device not in available:
        raise DeviceError(f"unknown device {device!r}; known: auto, {', '.join(available)}")
    if not available[device]:
        raise DeviceError(f"this machine has no {device} device; try --device cpu")
    name = torch.cuda.get_device_name() if device == "cuda" else device
    _logger.info("networks run on %s", name)
    return torch.device(device) if device == "cpu" else torch.device(device, 0)


def make_fabric(device: str = "auto", precision: str = "32-true", devices: int = 1) -> Fabric:
    """Fabric for training.

    Parameters
    ----------
    device
        As of :func:`find_device`, with its errors.
    precision
        ``32-true``, ``bf16-mixed`` or ``16-mixed``.
    devices
        Number of GPUs, or of processes on the CPU. With more than one, this is one process of so
        many (:mod:`napari_jrss.app.rounds.peers`), and waits for the others.

    Raises
    ------
    DeviceError
        Also if there are fewer devices.
    """
    kind = find_device(device).type
    if kind != "cpu" and devices > (there := torch.cuda.device_count() or 1):
        raise DeviceError(f"this machine has {there} {kind} device(s), not {devices}")
    # It takes as long to import as PyTorch itself, and predictions don't need it.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    # a batch system's own variables would say otherwise
    plugins = None if devices == 1 else [LightningEnvironment()]
    fabric = Fabric(accelerator=kind, devices=devices, precision=precision, plugins=plugins)  # type: ignore[arg-type]
    fabric.launch()
    _logger.info("trained in precision %s", precision)
    return fabric


def leave_a_core() -> None:
    """Let what is computed on this thread leave a core to others, and wait for them.

    For work behind a window; the thread should end with that work.
    """
    torch.set_num_threads(max(1, available_cores() - 1))
    step_back()
