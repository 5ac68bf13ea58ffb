"""An estimate of the time and memory that a series of rounds will take, before it starts.

Time is the number of steps of each stage times the seconds of one step: those of the latest
finished round with the same networks, batch sizes and device, or else measured. Memory is

    program + volumes + a + b * voxels,

where `voxels` is the size of the training grid; `a` and `b` are fitted to one step of each stage
on two small grids, in a process of its own, so that they hold for any network and device;
`volumes` are the cases that are kept in memory, up to a limit. docs/benchmarks.md compares the
formula with real runs.
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
from napari_jrss.app.rounds.progress import duration
from napari_jrss.app.rounds.train import DEVICE, STEP_SECONDS, PlannedRound, device_name
from napari_jrss.config import Shape, TrainingConfig
from napari_jrss.errors import JRSSError
from napari_jrss.preprocess.cost import MOST_ON_OWN_VOXELS, ON_CROPS, own_voxels_bytes
from napari_jrss.processes import Child, Parent, ProcessError
from napari_jrss.project.project import Project
from napari_jrss.project.records import Round, RoundOutcome
from napari_jrss.snapshot import CachedArrays, CaseScan, CohortSnapshot
from napari_jrss.training.trainable import check_devices

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from napari_jrss.training.loop import Cancel

SMALL_VOXELS, LARGE_VOXELS = 24**3, 40**3
_LONGEST_S = 7 * 24 * 3600
# Grids that any machine trains on.
_SMALL_GRID, _FEW_CLASSES = 300_000, 60
_MULTIPLE = 8
_BYTES_PER_VOXEL = 5  # a float32 image and its label
_GIB = 2**30
# glibc keeps what is freed, so that a second step would seem to need no memory.
_PROMPT_FREE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class EstimateError(JRSSError):
    """A step of the training could not be measured."""


class WontFitError(JRSSError):
    """A training that can't end on this machine; the message says what to do."""


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


@dataclass(frozen=True)
class Estimate:
    """What a series of rounds will cost."""

    seconds: float  # of the whole series
    device: str  # what it runs on
    basis: str  # where the seconds come from
    # Bytes at the peak, and what the device has in all.
    memory: float
    available: float

    @property
    def fits(self) -> bool:
        """Whether the device's memory is enough."""
        return self.memory < self.available

    def line(self) -> str:
        """The estimate in one line."""
        return (
            f"about {duration(self.seconds)} on {self.device} ({self.basis}), "
            f"{self.memory / _GIB:.1f} of {self.available / _GIB:.1f} GiB of memory"
            + ("" if self.fits else ": too much")
        )


def steps_of(
    config: TrainingConfig, snapshot: CohortSnapshot, pretrained: bool, rounds: int
) -> dict[str, int]:
    """Steps of each stage of a series: the pre-training if it is missing, and the rounds."""
    from napari_jrss.training.deformation import pairs_before
    from napari_jrss.training.quality import scans_to_judge
    from napari_jrss.training.trainable import fine_wanted

    cases = len(snapshot.training)
    segmentation = max(1, round(cases / config.segmentation.batch_size))
    registration = max(1, round(cases / config.registration.batch_size))
    judged = len(scans_to_judge(snapshot))
    trainings = rounds + (not pretrained)
    predictions = (judged + len(snapshot.unlabelled)) * trainings
    steps = {
        "registration": rounds * config.joint.registration_epochs * registration,
        "student": rounds * config.joint.steps(segmentation),
        config.registering_stage(joint=True): rounds * pairs_before(config, snapshot, joint=True),
        "prediction": predictions,
    }
    if fine_wanted(config, snapshot):
        steps["labelled_scans"] = len(snapshot.labelled) * trainings
        steps["own_voxels"] = config.fine.steps * trainings
    if not pretrained:
        seg, reg = config.segmentation, config.registration
        steps["mono_segmentation"] = seg.steps(segmentation, snapshot.classes - 1)
        steps["mono_registration"] = reg.steps(registration)
        stage = config.registering_stage(joint=False)
        steps[stage] = steps.get(stage, 0) + pairs_before(config, snapshot, joint=False)
    return {stage: count for stage, count in steps.items() if count}


def estimated(
    project: Project,
    config: TrainingConfig,
    rounds: int,
    measured: Measured,
    *,
    pretrain: bool = False,
) -> Estimate:
    """Estimate a series: memory as measured, time as earlier rounds took or as measured."""
    from napari_jrss.training.deformation import pairs_before
    from napari_jrss.training.quality import scans_to_judge
    from napari_jrss.training.trainable import usual_finer

    snapshot = project.snapshot()
    voxels = math.prod(snapshot.shape)
    crop = math.prod(config.segmentation.crop(snapshot.shape))
    pretrained = project.teacher is not None and not pretrain
    steps = steps_of(config, snapshot, pretrained, rounds)
    costs = {
        stage: cost.at(crop if stage in ON_CROPS else voxels)
        for stage, cost in measured.stages.items()
        if stage != "own_voxels"
    }
    if "registration" in costs:
        costs["mono_registration"] = costs["registration"]
    # Several processes share unlabelled cases and pairs; all judge the same labelled ones.
    each, memory = costs["prediction"]
    judged, unlabelled = len(scans_to_judge(snapshot)), len(snapshot.unlabelled)
    seconds = each * (judged + _part(unlabelled, measured))
    if "own_voxels" in steps:
        costs["own_voxels"] = measured.stages["own_voxels"].at(config.fine.crop**3)
        costs["labelled_scans"] = each, memory
        # A case is also predicted on its own voxels, in blocks whose memory is bounded.
        on_scan = measured.stages["prediction"].at(round(voxels * usual_finer(snapshot) ** 3))[0]
        seconds += on_scan * _part(min(unlabelled, MOST_ON_OWN_VOXELS), measured)
    costs["prediction"] = seconds / max(1, judged + unlabelled), memory
    for joint in (True, False):
        if (stage := config.registering_stage(joint=joint)) in steps:
            pairs = pairs_before(config, snapshot, joint=joint)
            each, memory = measured.stages[stage].at(voxels)
            costs[stage] = each * _part(pairs, measured) / pairs, memory
    known: dict[str, float] = {}
    for entry in filter(project.of_this_plan, project.rounds()):
        known.update(_step_seconds(entry, config, measured.name))
    basis = "as earlier rounds took"
    if not steps.keys() <= known.keys():
        known = {stage: seconds for stage, (seconds, _) in costs.items()}
        basis = "from a measured step"
    # Each process keeps volumes up to a limit; on a GPU they stay in the computer's memory.
    cases = len(snapshot.training) + len(snapshot.validation)
    volume = voxels * (_BYTES_PER_VOXEL + 4 * (snapshot.inputs - 1))  # a float32 for each image
    volumes = min(cases * volume, CachedArrays.budget_bytes)
    memory = measured.program + max(memory for _, memory in costs.values())
    if "own_voxels" in steps:
        everyone = (*snapshot.training, *snapshot.validation)
        memory += own_voxels_bytes(
            max(math.prod(project.attributes(case).transform.scan_shape) for case in everyone),
            round(voxels * usual_finer(snapshot) ** 3),
            len(snapshot.labelled),
            snapshot.classes,
            snapshot.inputs,
            on_gpu=measured.device == "cuda",
        )
    if measured.device == "cpu":
        memory = measured.devices * (memory + volumes)
    return Estimate(
        seconds=sum(count * known[stage] for stage, count in steps.items()),
        device=measured.name,
        basis=basis,
        memory=memory,
        available=measured.total,
    )


def _part(count: int, measured: Measured) -> int:
    """How many of so many items a process has that shares them with the others."""
    return -(-count // measured.devices)


def check_fits(
    project: Project, planned: PlannedRound, device: str, cancel: Cancel, devices: int = 1
) -> None:
    """Measure a step of each stage, unless the grid is small, and compare with the machine.

    Raises
    ------
    WontFitError
        The memory isn't enough, or the series would take more than a week.
    """
    snapshot = project.snapshot()
    small = math.prod(snapshot.shape) <= _SMALL_GRID and snapshot.classes <= _FEW_CLASSES
    if small or planned.interrupted is not None:
        return
    config = planned.config
    measured = measure_in_own_process(
        config, snapshot.classes, snapshot.shape, device, cancel, snapshot.inputs, devices
    )
    if measured is None:
        return
    rounds = planned.rounds_left + (not planned.pretraining)
    require_fit(estimated(project, config, rounds, measured, pretrain=planned.pretraining))


def require_fit(estimate: Estimate) -> None:
    """Raise a :class:`WontFitError` for what can't end on this machine."""
    if estimate.fits and estimate.seconds <= _LONGEST_S:
        return
    raise WontFitError(
        f"this training won't end well: {estimate.line()}. A coarser training grid costs less "
        "(napari-jrss plan PROJECT --use quick, or Plan in the tab Cohort), and so do a smaller "
        "batch and fewer rounds; --anyway starts it all the same"
    )


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
    program = 0.5 * _GIB if on_gpu else float(psutil.Process().memory_info().rss)
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


def _step_seconds(entry: Round, config: TrainingConfig, device: str) -> dict[str, float]:
    """Seconds per step of a finished round, if its steps cost what the planned ones will."""
    seconds = entry.metrics.get(STEP_SECONDS)
    if entry.outcome is not RoundOutcome.FINISHED or not isinstance(seconds, dict):
        return {}
    own = entry.files.training_config()
    if entry.metrics.get(DEVICE) != device or cost_settings(own) != cost_settings(config):
        return {}
    return {str(stage): float(value) for stage, value in seconds.items()}


def cost_settings(config: TrainingConfig) -> str:
    """The settings on which the cost of a step depends, as text to compare."""
    return config.model_dump_json(
        include={
            "precision": True,
            "segmentation_network": True,
            "registration_network": True,
            "segmentation": {"batch_size", "loss", "crop_fraction", "crop_voxels"},
            "registration": {"batch_size", "similarity"},
            "joint": {"student", "registration_warp", "supervised_dice"},
            "fine": {"crop"},
        }
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
