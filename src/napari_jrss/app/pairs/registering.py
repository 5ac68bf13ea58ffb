"""Register pairs of cases or scans, and let the labelled cases vote for a label."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from napari_jrss.errors import ProjectError, did_you_mean
from napari_jrss.geometry import Triple
from napari_jrss.inference.engines import engine_named
from napari_jrss.inference.partners import Field
from napari_jrss.inference.watch import Watch, to_the_end
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.metrics import (
    dice_per_class,
    folded_in_structures,
    folds,
    jacobian_statistics,
)
from napari_jrss.preprocess.case_attributes import DICOM_SOURCE
from napari_jrss.preprocess.pipeline import preprocess
from napari_jrss.preprocess.regrid import kept_scan
from napari_jrss.preprocess.transform import GridTransform
from napari_jrss.project.project import Project
from napari_jrss.snapshot import Image, Label

if TYPE_CHECKING:
    from napari_jrss.inference.predict import RegisteredPair
    from napari_jrss.io.predictions import Prediction

NETWORK = "jrss"
"""The engine that is the project's own registration network."""
WITHOUT_NETWORK = "refine"
"""The engine where none is asked for and there is no network."""


class RegistrationReport(BaseModel):
    """Figures of one registered pair.

    Attributes
    ----------
    moving, fixed
        Names of the two.
    structures
        Names of the structures, in the order of the lists below.
    dice_before, dice
        Dice of each structure before and after; None for one that is missing in either label.
        Empty without two labels.
    residual_before, residual
        Root mean square difference of the two images, which are normalised to a standard
        deviation of 1, before and after.
    std_jacobian, sdlogj_plus3
        See :class:`~napari_jrss.metrics.JacobianStatistics`.
    folded_percent
        Folded voxels, in %, see :func:`~napari_jrss.metrics.folds`.
    folded_in_structures
        Folded voxels of each structure of the warped label, in %; a warped structure with many
        folds is unreliable.
    seconds
        Time of the registration alone.
    engine
        Name of the engine that registered them.
    refined
        Whether the network's field was refined on the pair.
    notes
        What a scan's header leaves open, and what was decided.
    """

    model_config = ConfigDict(frozen=True)
    moving: str
    fixed: str
    structures: list[str]
    dice_before: list[float | None]
    dice: list[float | None]
    residual_before: float
    residual: float
    std_jacobian: float
    sdlogj_plus3: float
    folded_percent: float
    folded_in_structures: list[float | None]
    seconds: float
    engine: str = NETWORK
    refined: bool = False
    notes: list[str] = []

    @property
    def mean_dice(self) -> float | None:
        """Mean over the structures that both labels have; None without any."""
        return _mean(self.dice)

    @property
    def mean_dice_before(self) -> float | None:
        """Mean Dice before the registration."""
        return _mean(self.dice_before)

    @property
    def method(self) -> str:
        """The engine, and whether it refined, in words."""
        return f"{self.engine}, refined" if self.refined else self.engine


@dataclass(frozen=True, eq=False)
class RegistrationInput:
    """One scan of a pair on the training grid, and where the scan itself is."""

    name: str
    image: Image
    label: Label | None
    transform: GridTransform
    scan: Path | Volume
    # All images (channels, z, y, x) of a case that has several; `image` is the first.
    channels: Image | None = None

    def seen(self) -> Image:
        """What a teacher sees: all images of a case that has several."""
        return self.image if self.channels is None else self.channels

    def volume(self) -> Volume:
        """The scan itself, read if it is a file."""
        if isinstance(self.scan, Volume):
            return self.scan
        self.require_scan()
        return read_volume(self.scan)

    def require_scan(self) -> None:
        """Raise a :class:`ProjectError` if the scan's file isn't where it was."""
        if isinstance(self.scan, Path) and not self.scan.exists():
            raise ProjectError(
                f"{self.scan}: the scan of {self.name} is missing; find a scan that was moved "
                "with 'napari-jrss relink'"
            )


@dataclass(frozen=True, eq=False)
class Pair:
    """A moving scan registered to a fixed one, in memory, with its figures."""

    moving: RegistrationInput
    fixed: RegistrationInput
    registered: RegisteredPair
    report: RegistrationReport


@dataclass(frozen=True)
class Registrar:
    """What registers pairs of images on one grid: a project's network, or an engine."""

    engine: str
    # Moving and fixed image (z, y, x) -> displacement (3, z, y, x), in voxels of their grid.
    field: Callable[[Image, Image], Field]
    refined: bool = False  # whether the network's field is refined on each pair
    seen_axes: int = 3  # of what a refinement sees of a scan: 4 where its teacher sees channels


def engine_of(project: Project, engine: str = "") -> str:
    """The engine that is asked for; if none is, the network, or :data:`WITHOUT_NETWORK`."""
    return engine or (NETWORK if project.teacher is not None else WITHOUT_NETWORK)


def engine_of_votes(project: Project, engine: str = "") -> str:
    """The engine for labels that vote beside a teacher; if none is asked for, images alone.

    A field that is refined with the teacher's classes leads to the teacher's own errors, so that
    the average gains little by it (docs/dev/choices.md). A trained network is taken where there
    is one.
    """
    if engine or project.teacher is None:
        return engine_of(project, engine)
    trained = project.teacher.files.training_config().trains_registration
    return NETWORK if trained else WITHOUT_NETWORK


def require_engine(engine: str, project: Project | None) -> None:
    """Raise a ``JRSSError`` of one line if the engine can't be used; it isn't loaded."""
    if engine != NETWORK:
        engine_named(engine)
    elif project is None:
        raise ProjectError(
            f"the engine {NETWORK} is the trained network of a project: name the project, or "
            "choose another engine"
        )
    else:
        project.require_teacher()


def project_registrar(
    project: Project,
    engine: str = "",
    *,
    refined: bool = False,
    watch: Watch | None = None,
    device: str = "auto",
) -> Registrar:
    """Load what registers pairs of a project's cases, see :func:`engine_of`.

    With `refined` the network's field is refined on each pair. `watch` follows a refinement.
    """
    engine = engine_of(project, engine)
    if engine != NETWORK:
        if refined:
            raise ProjectError(
                f"refining a pair improves the field of the network; the engine {engine} has none"
            )
        return engine_registrar(engine, project.grid.spacing_mm, watch=watch, device=device)

    from napari_jrss.inference.device import find_device
    from napari_jrss.inference.load import load_refined, load_registration
    from napari_jrss.inference.predict import displacement_field

    files = project.require_teacher().files
    torch_device = find_device(device)
    refined = refined or not files.training_config().trains_registration
    if refined:
        network = load_refined(files, torch_device, watch or to_the_end)
    else:
        network = load_registration(files, torch_device)
    field = partial(displacement_field, network, device=torch_device)
    return Registrar(NETWORK, field, refined, 4 if project.channels else 3)


def engine_registrar(
    engine: str, spacing_mm: Triple, *, watch: Watch | None = None, device: str = "auto"
) -> Registrar:
    """What registers images whose voxels have a spacing (z, y, x), by an engine.

    Raises
    ------
    EngineError
        There is no such engine, or its package isn't installed.
    """
    require_engine(engine, None)
    chosen = engine_named(engine)

    from napari_jrss.inference.device import find_device

    field = partial(
        chosen.register,
        spacing_mm=spacing_mm,
        device=str(find_device(device)),
        watch=watch or to_the_end,
    )
    return Registrar(engine, field)


def register_sides(
    registrar: Registrar,
    moving: RegistrationInput,
    fixed: RegistrationInput,
    names: Sequence[str],
) -> Pair:
    """Register one scan to another, in memory; `names` of the C classes, background first."""
    from napari_jrss.inference.predict import follow

    started = time.perf_counter()
    both = [side.seen() if registrar.refined else side.image for side in (moving, fixed)]
    for side, image in zip((moving, fixed), both, strict=True):
        if registrar.refined and image.ndim != registrar.seen_axes:
            raise ProjectError(
                f"{side.name}: one image of a scan can't be refined in a project of several; "
                "register it without refine"
            )
    field = registrar.field(*both)
    seconds = time.perf_counter() - started
    registered = follow(field, moving.image, moving.label)
    regularity = jacobian_statistics(field)
    label = registered.label
    folded = folds(field)
    inside = [] if label is None else folded_in_structures(folded, label, len(names))

    def dice(label: Label | None) -> list[float | None]:
        if label is None or fixed.label is None:
            return []
        values = dice_per_class(label, fixed.label, len(names), "absent_in_either")
        return [None if np.isnan(value) else float(value) for value in values]

    report = RegistrationReport(
        moving=moving.name,
        fixed=fixed.name,
        structures=list(names[1:]),
        dice_before=dice(moving.label),
        dice=dice(registered.label),
        residual_before=_residual(moving.image, fixed.image),
        residual=_residual(registered.image, fixed.image),
        std_jacobian=regularity.std,
        sdlogj_plus3=regularity.sdlogj_plus3,
        folded_percent=100 * float(folded.mean()),
        folded_in_structures=inside,
        seconds=seconds,
        engine=registrar.engine,
        refined=registrar.refined,
        notes=[
            f"{side.name}: {side.transform.header.doubt}"
            for side in (moving, fixed)
            if side.transform.header is not None and side.transform.header.doubt
        ],
    )
    return Pair(moving, fixed, registered, report)


def propagate(
    project: Project, case_id: str, *, engine: str = "", device: str = "auto"
) -> Prediction:
    """Let the labelled cases vote for a case's label: each of them is registered to it."""
    registrar = project_registrar(project, engine, device=device)
    *_, draft = register_labelled(project, case_id, registrar)
    assert not isinstance(draft, RegistrationReport)
    return draft


def register_labelled(
    project: Project, case_id: str, registrar: Registrar, voters: Sequence[str] | None = None
) -> Iterator[RegistrationReport | Prediction]:
    """Register labelled cases to a case: `voters`, or every other one.

    Where left and right are alike, the mirror images of few voters vote, too. Yields the figures of
    each pair, but for mirror images; last, the label that all of them vote for.
    """
    from napari_jrss.inference.predict import Votes
    from napari_jrss.training.symmetry import mirror_of_votes

    snapshot = project.snapshot()
    labelled = snapshot.labelled if voters is None else voters
    atlases = [case for case in labelled if case != case_id]
    if not atlases:
        raise ProjectError(f"{project.path}: no other labelled case to register")
    names = project.table.names
    fixed = read_registration_input(project, case_id)
    votes = Votes(fixed.image, len(names))
    mirror = mirror_of_votes(snapshot, len(atlases))
    for atlas in atlases:
        moving = read_registration_input(project, atlas)
        pair = register_sides(registrar, moving, fixed, names)
        votes.add(pair.registered)
        if mirror is not None:
            turned = _mirror_image_of(moving, mirror)
            votes.add(register_sides(registrar, turned, fixed, names).registered)
        yield pair.report
    yield votes.prediction()


def _mirror_image_of(side: RegistrationInput, classes: Sequence[int]) -> RegistrationInput:
    """A labelled scan mirrored on the training grid, only for votes: its scan isn't mirrored."""
    from napari_jrss.inference.predict import mirror_image

    assert side.label is not None
    image, label = mirror_image(side.image, side.label, classes)
    channels = None if side.channels is None else np.ascontiguousarray(side.channels[..., ::-1])
    return replace(side, image=image, label=label, channels=channels)


def read_registration_input(project: Project, name: str) -> RegistrationInput:
    """Read a case of the project by its id, or a scan by its path."""
    cases = {case.case_id: case for case in project.cases()}
    if name in cases:
        attributes = project.attributes(name)
        label = project.label(name) if cases[name].label_version else None
        channels = project.channel_images(name) if project.channels else None
        image = project.image(name) if channels is None else channels[0]
        transform = attributes.transform
        scan: Path | Volume = Path(attributes.source)
        if attributes.source == DICOM_SOURCE:
            # The path of a DICOM scan isn't kept: use the project's image, on the scan's grid.
            scan = Volume(transform.image_to_source(image), np.array(transform.source_affine))
        if attributes.part is not None:
            scan = kept_scan(project.case_path(name))
        return RegistrationInput(name, image, label, transform, scan, channels)
    if not Path(name).exists():
        hint = did_you_mean(name, cases)
        raise ProjectError(f"{name}: neither a case of {project.path} nor a file{hint}")
    return prepare_registration_input(project, name, read_volume(Path(name)))


def prepare_registration_input(project: Project, name: str, volume: Volume) -> RegistrationInput:
    """Preprocess a volume that isn't a case as the cases were."""
    ready = preprocess(volume, None, project.preprocessing, project.grid)
    return RegistrationInput(name, ready.image, None, ready.transform, volume)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _residual(image: Image, fixed: Image) -> float:
    return float(np.sqrt(np.mean((image - fixed) ** 2, dtype=np.float64)))
