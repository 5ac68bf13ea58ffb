"""Check this machine: versions of packages, devices, memory.

Heavy packages are imported only inside :func:`examine`, so that a broken one becomes a line of
the report.
"""

import contextlib
import importlib
import io
import os
import platform
import shutil
import sys
import warnings
from dataclasses import dataclass
from importlib import metadata, util

import psutil
from packaging.requirements import Requirement

from napari_jrss.logs import LOG
from napari_jrss.threads import available_cores

_DISTRIBUTION = "napari-jrss"
_MODULES = {
    "scikit-image": "skimage",
    "simpleitk": "SimpleITK",
}
_QT_BINDINGS = ("PyQt6", "PySide6", "PyQt5", "PySide2")
_GIB = 2**30
_COMFORTABLE_GIB = 4.0


@dataclass(frozen=True)
class Device:
    """A device on which the networks can run; `name` is a value for ``--device``."""

    name: str
    description: str
    memory_gib: float


@dataclass(frozen=True)
class Report:
    """The state of this machine; `window` and `log` say in words whether and where they are."""

    version: str
    python: str
    platform: str
    versions: dict[str, str | None]  # of each required package; None if it isn't installed
    engines: dict[str, str]  # each registration engine: "ready", or what to do
    partners: dict[str, str]  # other programs that help with labels: their version, or what to do
    torch_build: str  # what PyTorch is built for, such as "CUDA 12.8"; empty if it is missing
    devices: tuple[Device, ...]  # the fastest last
    memory_gib: float
    free_memory_gib: float
    window: str
    log: str
    problems: tuple[str, ...]  # what is missing or broken, and how to repair it, in a line each


def examine() -> Report:
    """Check this machine; this imports all packages, which takes seconds."""
    problems: list[str] = []
    versions: dict[str, str | None] = {}
    for requirement in _requirements():
        versions[requirement.name], problem = _check(requirement)
        if problem:
            problems.append(problem)

    memory = psutil.virtual_memory()
    if memory.total / _GIB < _COMFORTABLE_GIB:
        problems.append(
            f"{memory.total / _GIB:.1f} GiB of memory: {_COMFORTABLE_GIB:.0f} GiB or more are "
            "needed for scans of 160x192x160 voxels"
        )
    return Report(
        version=metadata.version(_DISTRIBUTION),
        python=platform.python_version(),
        platform=platform.platform(),
        versions=versions,
        engines=_engines(),
        partners=_partners(),
        torch_build=_torch_build() if "torch" in sys.modules else "",
        devices=_devices() if "torch" in sys.modules else (),
        memory_gib=memory.total / _GIB,
        free_memory_gib=memory.available / _GIB,
        window=_window(),
        log=f"{LOG} in the project's folder, to be attached to a bug report",
        problems=tuple(problems),
    )


def _requirements() -> list[Requirement]:
    """The packages that the core requires, according to the installed distribution."""
    declared = [Requirement(line) for line in metadata.requires(_DISTRIBUTION) or ()]
    return [each for each in declared if each.marker is None or each.marker.evaluate({"extra": ""})]


def _check(requirement: Requirement) -> tuple[str | None, str | None]:
    """Version of a required package, and the problem with it, if any."""
    name = requirement.name
    install = f'pip install "{requirement}"'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return None, f"{name} is not installed: {install}"
    if not requirement.specifier.contains(version, prereleases=True):
        return version, f"{name} {version} does not satisfy {requirement.specifier}: {install}"
    try:
        importlib.import_module(_MODULES.get(name.lower(), name.replace("-", "_")))
    except Exception as error:  # a broken installation may raise any error
        reason = " ".join(str(error).split())
        return version, f"{name} {version} can't be imported ({reason}): reinstall it"
    return version, None


def _engines() -> dict[str, str]:
    """Each registration engine, and whether the package that it drives can be imported."""
    from napari_jrss.inference.engines import engines

    found = {}
    for name, engine in engines().items():
        found[name] = engine.state
        if engine.module and not engine.problem:
            try:
                with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                    importlib.import_module(engine.module)
            except Exception as error:  # a broken installation may raise any error
                found[name] = f"can't be imported: {' '.join(str(error).split())}"
    return found


def _partners() -> dict[str, str]:
    """Each program that can help with a label, and whether it is there."""
    from napari_jrss.inference.prompts import CLIENT, INSTALL, client_problem
    from napari_jrss.inference.totalsegmentator import PROGRAM, DraftError, TotalSegmentator

    try:
        program = f"{TotalSegmentator().find()}, for drafts"
    except DraftError as error:
        program = str(error)
    client = INSTALL if client_problem() else f"{metadata.version(CLIENT)}, for prompts"
    return {CLIENT: client, PROGRAM: program}


def _torch_build() -> str:
    """What PyTorch is built for."""
    import torch

    unseen = "" if torch.cuda.device_count() else ", but sees no GPU here"
    if torch.version.hip:
        return f"ROCm {torch.version.hip}{unseen}"
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}{unseen}"
    if torch.backends.mps.is_built():
        return "Apple GPUs (MPS)"
    unused = ", though an NVIDIA GPU is here" if shutil.which("nvidia-smi") else ""
    return f"CPUs{unused}"


def _devices() -> tuple[Device, ...]:
    import torch

    cores = available_cores()
    found = [
        Device(
            "cpu",
            f"{platform.processor() or platform.machine()}, {cores} cores, "
            f"{torch.get_num_threads()} thread(s)",
            psutil.virtual_memory().total / _GIB,
        )
    ]
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", torch.mps.recommended_max_memory() / _GIB))
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found.append(Device(f"cuda:{index}", gpu.name, gpu.total_memory / _GIB))
    return tuple(found)


def _window() -> str:
    if util.find_spec("napari") is None:
        return 'napari is not installed: pip install "napari-jrss[all]"'
    bindings = [name for name in _QT_BINDINGS if util.find_spec(name) is not None]
    napari = f"napari {metadata.version('napari')}"
    if not bindings:
        return f'{napari} without a Qt binding: pip install "napari-jrss[all]"'
    display = sys.platform != "linux" or os.getenv("DISPLAY") or os.getenv("WAYLAND_DISPLAY")
    return f"{napari} with {bindings[0]}" + ("" if display else ", but no display here")
