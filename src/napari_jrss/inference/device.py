"""Device, precision and processes, through lightning-fabric."""

from __future__ import annotations

import logging
import os
import sys
import threading

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from napari_jrss.errors import JRSSError
from napari_jrss.processes import available_cores

_logger = logging.getLogger(__name__)
_BEHIND = 10  # niceness


class DeviceError(JRSSError):
    """The device is unknown, or this machine doesn't have it."""


def make_fabric(device: str = "auto", precision: str = "32-true", devices: int = 1) -> Fabric:
    """Fabric for training.

    Parameters
    ----------
    device
        ``cpu``, ``cuda``, ``mps``, or ``auto``: CUDA where there is one, else the CPU.
    precision
        ``32-true``, ``bf16-mixed`` or ``16-mixed``.
    devices
        Number of GPUs, or of processes on the CPU. With more than one, this is one process of so
        many (:mod:`napari_jrss.app.rounds.peers`), and waits for the others.

    Raises
    ------
    DeviceError
        If the device is not there, or there are fewer.
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
    if device != "cpu" and devices > (there := torch.cuda.device_count() or 1):
        raise DeviceError(f"this machine has {there} {device} device(s), not {devices}")
    # a batch system's own variables would say otherwise
    plugins = None if devices == 1 else [LightningEnvironment()]
    fabric = Fabric(accelerator=device, devices=devices, precision=precision, plugins=plugins)  # type: ignore[arg-type]
    fabric.launch()
    name = torch.cuda.get_device_name() if device == "cuda" else device
    _logger.info("networks run on %s, precision %s", name, precision)
    return fabric


def leave_a_core() -> None:
    """Let what is computed on this thread leave a core to others, and wait for them.

    For work behind a window; the thread should end with that work.
    """
    torch.set_num_threads(max(1, available_cores() - 1))
    if sys.platform == "linux":  # elsewhere this would be the whole process
        least = max(_BEHIND, os.getpriority(os.PRIO_PROCESS, 0))
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), least)
