"""Training and registration as a script calls them; the command line calls the same functions."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event as Flag
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from napari_jrss.app.pairs.files import ScanWarp, on_fixed_scan, write_pair
from napari_jrss.app.pairs.registering import (
    NETWORK,
    WITHOUT_NETWORK,
    Pair,
    RegistrationReport,
    engine_of,
    prepare_registration_input,
    project_registrar,
    read_registration_input,
    register_sides,
)
from napari_jrss.app.pairs.scans import register_scans
from napari_jrss.app.rounds.estimate import check_fits
from napari_jrss.app.rounds.progress import Progress, words
from napari_jrss.app.rounds.train import (
    VALIDATION_DICE,
    Executor,
    InThisProcess,
    plan_series,
    run_series,
)
from napari_jrss.app.settings import training_config
from napari_jrss.config import Prealign, PresetName, TrainingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.io.volume import Volume
from napari_jrss.labels import LabelTable
from napari_jrss.progress_bar import Bar, long_call, watching
from napari_jrss.project.project import Project
from napari_jrss.project.records import Round
from napari_jrss.training.events import EpochEnd, Event, RoundFinished

if TYPE_CHECKING:
    from napari_jrss.app.rounds.launch import RunOn
    from napari_jrss.training.loop import Cancel


def training_bars(*_: object, **__: object) -> Callable[[Event], Bar | None]:
    """A bar per stage, with steps, loss and best validation Dice; a line per round."""
    progress = Progress()

    def bar(event: Event) -> Bar | None:
        before = progress.stage
        progress.add(event)
        if isinstance(event, RoundFinished):
            return Bar("", 0, line=f"{_round_line(event)}\n{event.warning}".rstrip())
        if not progress.stage:
            return None
        figures = {"loss": progress.loss, "best Dice": progress.best}
        note = ", ".join(f"{k} {v:.3f}" for k, v in figures.items() if v is not None)
        # In a log, a line as each stage starts, whose first epoch may be long, and per epoch.
        milestone = isinstance(event, EpochEnd) or progress.stage != before
        return Bar(words(progress.stage), progress.step, progress.steps, note, milestone=milestone)

    return bar


def _round_line(event: RoundFinished) -> str:
    def dice(name: str) -> str:
        value = event.metrics.get(name)
        return "-" if value is None else f"{value:.3f}"

    return (
        f"round {event.number}: {event.metrics['labelled']:.0f} labelled, "
        f"{event.metrics['accepted']:.0f} pseudo-labels accepted; validation Dice: segmentation "
        f"{dice(VALIDATION_DICE)}, registration {dice('validation_registration_dice')}"
    )


@long_call(training_bars)
def train(
    project: Project,
    config: TrainingConfig | None = None,
    *,
    preset: PresetName = "fast",
    rounds: int = 3,
    resume: bool | None = None,
    pretrain: bool = False,
    device: str = "auto",
    devices: int = 1,
    anyway: bool = False,
    on: RunOn | str | None = None,
    log_to: str | None = None,
    cancel: Cancel | None = None,
) -> Generator[Event, None, Round | None]:
    """Pre-train both networks where that wasn't done yet, then run joint rounds.

    The teacher of each round that ends is the current one from then on. A round that is
    cancelled, interrupted or fails leaves the teacher as it was, and can be resumed.
    ``train.events(...)`` yields the events of :mod:`napari_jrss.training.events`.

    Parameters
    ----------
    project
        Open for writing, with labelled cases.
    config
        All settings; None: those of `preset`.
    preset
        ``paper`` (for a GPU), ``fast`` (for a CPU) or ``smoke`` (only shows that all runs). The
        project's plan may change some settings of ``fast``.
    rounds
        Joint rounds after the pre-training, or after the current teacher.
    resume
        True: go on with an interrupted series, with the settings that it was begun with. False:
        leave it and start anew. None: an interrupted series is an error.
    pretrain
        Pre-train again though there is a teacher, which stays the current one until that is
        done.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    devices
        Number of GPUs, or of processes on the CPU, that share each batch. The results are those of
        one, but for rounding. Each is a process of its own.
    anyway
        Start also what doesn't fit into the memory, or would take more than a week; with `on`,
        that isn't looked at.
    on
        Another computer to train on: what stands before the training process, such as ``ssh gpu``
        or ``srun --gres=gpu:1``; or a :class:`~napari_jrss.app.rounds.launch.RunOn`, which also
        says what is where on it; or the scheduler of a cluster, such as ``tls://host:8786``.
    log_to
        ``csv:FOLDER`` or ``tensorboard:FOLDER``: log the losses and the validation Dice there, too.
    cancel
        Stops the training at its next step once its ``is_set()`` is true, as that of a
        :class:`threading.Event`.

    Returns
    -------
    Round or None
        The round whose teacher is the current one; None if there is none yet.

    Raises
    ------
    InterruptedSeriesError
        `resume` doesn't say what to do with an interrupted series, or there is none to resume.
    RoundError
        The project has too few labelled cases for what is asked for.
    WontFitError
        The memory of the device isn't enough, or the training would take more than a week.
    OutOfMemoryError
        The memory of the device isn't enough.
    ProcessError
        The training on another computer failed, or the connection broke.
    """
    config = config or training_config(preset, plan=project.plan)
    cancel = cancel or Flag()
    planned = plan_series(project, config, rounds, resume=resume, pretrain=pretrain)
    executor: Executor = InThisProcess(device)
    if on is not None:
        from napari_jrss.app.rounds.elsewhere import executor_elsewhere
        from napari_jrss.app.rounds.launch import RunOn

        run_on = RunOn(on) if isinstance(on, str) else on
        executor = executor_elsewhere(project.path, run_on, device, devices)
    elif devices > 1:
        import torch

        from napari_jrss.app.rounds.process import InOwnProcess

        threads = torch.get_num_threads()
        executor = InOwnProcess(project.path, device, devices=devices, threads=threads)
    if on is None and not anyway:
        check_fits(project, planned, device, cancel, devices)
    events = run_series(project, planned, cancel, executor)
    if log_to is not None:
        from napari_jrss.app.rounds.logged import logged, open_logger

        events = logged(events, open_logger(log_to))
    yield from events
    return project.teacher


@dataclass(frozen=True, eq=False)
class Registration:
    """A moving scan registered to a fixed one, on the grid of the fixed scan."""

    pair: Pair
    table: LabelTable | None  # of the project; None without one

    @cached_property
    def _warp(self) -> ScanWarp:
        return on_fixed_scan(self.pair)

    @property
    def field(self) -> NDArray[np.float32]:
        """Displacement (3, z, y, x) in mm, order x, y, z (LPS), on the grid of :attr:`warped`.

        It says for each voxel where to look in the moving scan, as ITK and ANTs have it.
        """
        return self._warp.displacement

    @property
    def warped(self) -> Volume:
        """The moving scan (z, y, x), linearly interpolated on the grid of the fixed scan."""
        return Volume(self._warp.image, self._warp.affine)

    @property
    def warped_label(self) -> Volume | None:
        """The label of the moving case, as :func:`segment` gives labels; None without one."""
        if self._warp.label is None or self.table is None:
            return None
        return Volume(self.table.to_source_ids(self._warp.label), self._warp.affine)

    @property
    def figures(self) -> RegistrationReport:
        """Dice before and after, residuals, folded voxels and seconds of the registration."""
        return self.pair.report

    def save(self, out: str | Path) -> list[Path]:
        """Write ``displacement.nii.gz``, ``warped_image.nii.gz`` and ``report.json``.

        Where the moving case has a label, ``warped_label.nii.gz`` and the names of the
        structures too.

        Parameters
        ----------
        out
            Folder to write to; made if it is missing.

        Returns
        -------
        list of Path
            The files.

        Raises
        ------
        ProjectError
            A label that no export wrote, or that was edited since, is in the way.
        """
        return write_pair(self.pair, self.table, Path(out), self._warp)


Scan = str | Path | Volume


@overload
def register(
    project: Project,
    moving: Scan,
    fixed: Scan,
    /,
    *,
    engine: str = ...,
    refine: bool = ...,
    device: str = ...,
) -> Registration: ...
@overload
def register(
    moving: Scan, fixed: Scan, /, *, engine: str = ..., prealign: Prealign = ..., device: str = ...
) -> Registration: ...
def register(
    *scans: Project | Scan,
    engine: str = "",
    refine: bool = False,
    prealign: Prealign | None = None,
    device: str = "auto",
) -> Registration:
    """Register a moving scan to a fixed one: ``register(moving, fixed)``, without a project.

    ``register(project, moving, fixed)`` registers cases or scans on the grid of a project, by its
    current registration network or by an engine.

    Parameters
    ----------
    *scans
        A project where there is one, then the moving and the fixed scan. Each is a NIfTI file, a
        folder of one DICOM series, a scan in memory or, in a project, the id of a case.
    engine
        ``jrss`` is the network of a project. Without training: ``refine``, which is always there,
        ``greedy``, ``ants``, ``convexadam``, ``fireants``, and what other packages add. By default
        the network of a project that has one, else ``refine``.
    refine
        Whether the network's field is improved on this pair, by what the teacher sees in both
        scans. Takes half a second on small volumes, 20 s on whole heads.
    prealign
        Without a project, what comes before the engine: ``affine`` (the default),
        ``center_of_mass``, or ``none`` for scans that lie in one frame.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Returns
    -------
    Registration
        Its `field`, `warped` scan and `figures`; nothing is written before
        :meth:`Registration.save`.

    Raises
    ------
    EngineError
        There is no such engine, its package isn't installed, or it failed.
    ProjectError
        There are no trained networks for the engine ``jrss``, no such case or file, or the file of
        a case isn't where it was.
    ScanError
        A scan can't be read or used, or the pre-alignment fails.
    """
    project = scans[0] if scans and isinstance(scans[0], Project) else None
    pair = [each for each in scans if not isinstance(each, Project)]
    if len(pair) != 2:
        raise TypeError("register takes a moving and a fixed scan, and a project before them")
    moving, fixed = pair
    if project is not None:
        if prealign is not None:
            raise ProjectError("a project has its own pre-alignment: leave prealign out")
        return _register_in_project(project, moving, fixed, engine, refine, device)
    if refine:
        raise ProjectError(f"refine improves the field of a project's network: engine={NETWORK!r}")
    engine = engine or WITHOUT_NETWORK
    with watching("registering") if engine == WITHOUT_NETWORK else nullcontext() as watch:
        registered = register_scans(
            moving, fixed, engine, prealign=prealign or "affine", watch=watch, device=device
        )
    return Registration(registered, None)


def _register_in_project(
    project: Project, moving: Scan, fixed: Scan, engine: str, refine: bool, device: str
) -> Registration:
    engine = engine_of(project, engine)
    with watching("refining") if refine or engine == WITHOUT_NETWORK else nullcontext() as watch:
        registrar = project_registrar(project, engine, refined=refine, watch=watch, device=device)
        here, there = (
            prepare_registration_input(project, name, side)
            if isinstance(side, Volume)
            else read_registration_input(project, str(side))
            for name, side in (("moving", moving), ("fixed", fixed))
        )
        for side in (here, there):
            side.require_scan()
        pair = register_sides(registrar, here, there, project.table.names)
    return Registration(pair, project.table)
