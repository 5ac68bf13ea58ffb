"""What one step of each stage of a training takes on this machine: seconds and bytes.

A step is taken on two small grids of made-up cases, in a process of its own; the line through both
tells what a step on a larger grid takes.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import psutil
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from napari_jrss.app.rounds.peers import Peers, ending
from napari_jrss.app.rounds.train import device_name
from napari_jrss.config import Shape, TrainingConfig
from napari_jrss.errors import JRSSError
from napari_jrss.preprocess.cost import ON_CROPS
from napari_jrss.processes import Child, Parent, ProcessError
from napari_jrss.snapshot import CachedArrays, CaseScan, CohortSnapshot
from napari_jrss.training.trainable import check_devices

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from napari_jrss.training.loop import Cancel

SMALL_VOXELS, LARGE_VOXELS = 24**3, 40**3
_MULTIPLE = 8
_GPU_PROGRAM_BYTES = 2**29
# glibc keeps what is freed, so that a second step would seem to need no memory.
_PROMPT_FREE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class EstimateError(JRSSError):
    """A step of the training could not be measured."""


class StepCost(BaseModel):
    """Seconds and peak bytes of one step, each ``a + b * voxels``."""

    model_config = ConfigDict(frozen=True)
    seconds: tuple[float, float]
    memory: tuple[float, float]

    def at(self, voxels: int) -> tuple[float, float]:
        """Seconds and bytes on a grid of so many voxels."""
        seconds, memory = (a + b * voxels for a, b in (self.seconds, self.memory))
        return seconds, memory


class Measured(BaseModel):
    """Result of :func:`measure`: bytes of a process between steps, of the device in all.

    With several devices, the costs are those of each process while all take the step together.
    """

    model_config = ConfigDict(frozen=True)
    device: str
    devices: int = 1
    program: float
    total: float
    stages: dict[str, StepCost]

    @property
    def name(self) -> str:
        """The device as a round records it."""
        return device_name(self.device, self.devices)


class _Question(BaseModel):
    """Arguments of :func:`measure`."""

    config: TrainingConfig
    classes: int
    shape: Shape
    device: str
    images: int = 1
    devices: int = 1


def measure_in_own_process(
    config: TrainingConfig,
    classes: int,
    shape: Shape,
    device: str,
    cancel: Cancel,
    images: int = 1,
    devices: int = 1,
) -> Measured | None:
    """:func:`measure` in a process of its own; None if cancelled, an EstimateError if it fails.

    A :class:`~napari_jrss.training.trainable.RoundError` if so many devices can't share a batch.
    """
    check_devices(config, devices)
    question = _Question(
        config=config, classes=classes, shape=shape, device=device, images=images, devices=devices
    )
    try:
        with Child("estimate", _answer, environment=_PROMPT_FREE) as child:
            child.send(question.model_dump_json())
            while not cancel.is_set():
                if (answer := child.receive()) is not None:
                    return Measured.model_validate_json(answer)
    except ProcessError as error:
        raise EstimateError(f"a step of this training could not be measured: {error}") from None
    return None


def _answer(parent: Parent) -> None:
    """The process that measures; of several devices, one process of so many."""
    line = parent.receive().decode().strip()
    asked = _Question.model_validate_json(line)
    with Peers(_answer, asked.devices, ending(parent)) as peers:
        peers.send(line)
        measured = measure(
            *(asked.config, asked.classes, asked.shape, asked.device, asked.images, asked.devices)
        )
        parent.send(measured.model_dump_json())


def measure(
    config: TrainingConfig,
    classes: int,
    shape: Shape,
    device: str,
    images: int = 1,
    devices: int = 1,
) -> Measured:
    """Take one step of each stage on two small grids (z, y, x), with so many images of a case."""
    import torch

    from napari_jrss.inference.device import make_fabric

    torch.set_num_threads(max(1, torch.get_num_threads() // devices))
    fabric = make_fabric(device, config.precision, devices)
    on_gpu = fabric.device.type == "cuda"
    program = _GPU_PROGRAM_BYTES if on_gpu else float(psutil.Process().memory_info().rss)
    names = ["mono_segmentation", "student", "prediction"]
    if config.trains_registration:
        names.append("registration")
    names += registering_stages(config)
    if config.fine.steps > 0:
        names.append("own_voxels")
    crop = config.segmentation.crop(shape)
    # the grids that are measured stand for whole scans, or for crops
    settings = config.segmentation.model_copy(update={"crop_fraction": 1.0})
    config = config.model_copy(update={"segmentation": settings})
    stages = {}
    for name in names:
        of = crop if name in ON_CROPS else shape
        if name == "own_voxels":
            of = (config.fine.crop,) * 3
        small, large = (_scaled(of, voxels) for voxels in (SMALL_VOXELS, LARGE_VOXELS))
        costs = []
        for grid in (small, large):
            step = one_step(name, config, classes, grid, fabric, images)
            step()  # the first one also sets things up
            if not on_gpu:  # packages that a stage needs, networks and the optimiser's moments
                program = max(program, float(psutil.Process().memory_info().rss))
            fabric.barrier()
            costs.append(_cost(step, torch.cuda if on_gpu else None))
        sizes = math.prod(small), math.prod(large)
        stages[name] = StepCost(
            seconds=_line(sizes, (costs[0][0], costs[1][0])),
            memory=_line(sizes, (costs[0][1], costs[1][1])),
        )
    total = psutil.virtual_memory().total
    if on_gpu:
        total = torch.cuda.get_device_properties(fabric.device).total_memory
    return Measured(
        device=fabric.device.type, devices=devices, program=program, total=total, stages=stages
    )


def registering_stages(config: TrainingConfig) -> list[str]:
    """The stages that register pairs before trainings with these settings."""
    found = {config.registering_stage(joint=joint) for joint in (True, False)}
    return sorted(found - {""})


def _scaled(shape: Shape, voxels: int) -> Shape:
    """A grid of about so many voxels and the shape's proportions, or the shape if it is smaller."""
    if math.prod(shape) <= voxels:
        return shape
    factor = (voxels / math.prod(shape)) ** (1 / 3)
    z, y, x = (max(16, _MULTIPLE * round(size * factor / _MULTIPLE)) for size in shape)
    return z, y, x


def _line(sizes: tuple[int, int], costs: tuple[float, float]) -> tuple[float, float]:
    """``a, b`` of the line through two measurements, neither below 0."""
    if sizes[0] == sizes[1]:
        return 0.0, costs[1] / sizes[1]
    slope = max(0.0, (costs[1] - costs[0]) / (sizes[1] - sizes[0]))
    return max(0.0, costs[1] - slope * sizes[1]), slope


def one_step(
    name: str, config: TrainingConfig, classes: int, grid: Shape, fabric: Fabric, images: int = 1
) -> Callable[[], None]:
    """One step of a stage, as :func:`napari_jrss.training.loop.fit` takes it, on made-up cases."""
    from napari_jrss.inference.predict import predict_case
    from napari_jrss.networks.build import build_registration_network, build_segmentation_network
    from napari_jrss.networks.fine import FineNetwork
    from napari_jrss.networks.mirror import Mirrored
    from napari_jrss.training.deformation import SETTINGS, field_between
    from napari_jrss.training.fine import FineStage
    from napari_jrss.training.loop import Stage
    from napari_jrss.training.perturbed import PerturbedStudentStage
    from napari_jrss.training.screening import PseudoLabel
    from napari_jrss.training.stages import (
        MonoSegmentationStage,
        RegistrationStage,
        StudentStage,
        TrainingTensors,
    )

    snapshot = _made_up(classes, grid, images)
    dropout = config.joint.dropout if name == "student" else 0.0
    network = build_segmentation_network(config.segmentation_network, classes, dropout, images)
    registration = build_registration_network(config.registration_network)
    label = _slabs(classes, grid)
    full = np.ones(classes, bool)
    pseudo = {
        case: PseudoLabel(label, label, True, full * 1.0, full) for case in snapshot.unlabelled
    }
    tensors = TrainingTensors(snapshot, pseudo, fabric.device)
    rng = np.random.default_rng(0)
    if name == "prediction":
        if config.mirror_image:
            network = Mirrored(network, range(classes))
        network.to(fabric.device).eval()
        image = snapshot.arrays.channels("a")
        return lambda: (predict_case(network, image, fabric.device), None)[1]
    if name in SETTINGS:
        return lambda: (field_between(snapshot, "a", "u", fabric.device, SETTINGS[name]), None)[1]
    stage: Stage
    if name == "registration":
        stage = RegistrationStage(name, registration, tensors, config, fabric, epochs=1)
    elif name == "student":
        teacher = build_segmentation_network(config.segmentation_network, classes, channels=images)
        if config.joint.student == "registered":
            stage = StudentStage(name, network, teacher, registration, tensors, config, fabric)
        else:
            stage = PerturbedStudentStage(name, network, teacher, tensors, config, fabric, {})
    elif name == "own_voxels":
        teacher = network.to(fabric.device).eval()
        stage = FineStage(name, FineNetwork(classes, images), teacher, tensors, config, fabric)
        stage.crop = grid
    else:
        stage = MonoSegmentationStage(network, tensors, config, fabric)

    def step() -> None:
        losses = stage.losses(0, rng)
        stage.optimizer.zero_grad()
        fabric.backward(losses["total"])
        stage.optimizer.step()
        float(losses["total"].detach())

    return step


def _made_up(classes: int, grid: Shape, images: int) -> CohortSnapshot:
    """Noise, with slabs as labels, one for each class."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(images, *grid)).astype(np.float32)
    label = _slabs(classes, grid)
    return CohortSnapshot(
        scans=_MadeUpScans(image, label),
        class_names=tuple(map(str, range(classes))),
        spacing_mm=(1.0, 1.0, 1.0),
        shape=grid,
        labelled=("a", "b"),
        unlabelled=("u", "v"),
        validation=(),
        label_versions={},
        arrays=CachedArrays(lambda case_id: image, lambda case_id: label),
        channels=tuple(map(str, range(images))) if images > 1 else (),
    )


@dataclass(frozen=True)
class _MadeUpScans:
    """The made-up case as its own scan."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8]

    def scan(self, case_id: str) -> CaseScan:
        return CaseScan(self.image, np.eye(4))

    def scan_label(self, case_id: str) -> NDArray[np.uint8]:
        return self.label

    def finer(self, case_id: str) -> float:
        return 1.0


def _slabs(classes: int, grid: Shape) -> NDArray[np.uint8]:
    return np.broadcast_to(np.arange(grid[2]) * classes // grid[2], grid).astype(np.uint8)


def _cost(step: Callable[[], None], cuda: object) -> tuple[float, float]:
    """Seconds of a step, and the bytes that it takes at its peak."""
    if cuda is not None:
        import torch

        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        return seconds, float(torch.cuda.max_memory_reserved() - before)
    with _peak_of_process() as peak:
        started = time.perf_counter()
        step()
        seconds = time.perf_counter() - started
    return seconds, float(peak())


@contextlib.contextmanager
def _peak_of_process() -> Iterator[Callable[[], int]]:
    """Watch how far the process's memory grows meanwhile; PyTorch lets other threads run."""
    process = psutil.Process()
    before = highest = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: highest - before
    finally:
        done.set()
        thread.join()
