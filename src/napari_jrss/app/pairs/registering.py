"""Register pairs of cases or scans, and let the labelled cases vote for a label."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from napari_jrss.errors import ProjectError, did_you_mean
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.metrics import (
    dice_per_class,
    folded_in_structures,
    folds,
    jacobian_statistics,
)
from napari_jrss.preprocess.case_store import DICOM_SOURCE
from napari_jrss.preprocess.pipeline import preprocess
from napari_jrss.preprocess.transform import GridTransform
from napari_jrss.project.project import Project
from napari_jrss.snapshot import Image, Label

if TYPE_CHECKING:
    from torch import device as Device
    from torch.nn import Module

    from napari_jrss.inference.predict import RegisteredPair
    from napari_jrss.inference.refine import Watch
    from napari_jrss.io.predictions import Prediction


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
    refined
        Whether the field was refined on the pair.
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


@dataclass(frozen=True, eq=False)
class RegistrationInput:
    """One scan of a pair on the training grid, and where the scan itself is."""

    name: str
    image: Image
    label: Label | None
    transform: GridTransform
    scan: Path | Volume

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


def registration_network(
    project: Project, device: str = "auto", refine: Watch | None = None
) -> tuple[Module, Device]:
    """Load the present registration network; returns it and its device.

    With `refine` each field is refined on its pair, and this follows the refinement, see
    :mod:`napari_jrss.inference.refine`.
    """
    from napari_jrss.inference.device import make_fabric
    from napari_jrss.inference.load import load_refined, load_registration

    entry = project.require_teacher()
    torch_device = make_fabric(device).device
    if refine is None:
        return load_registration(entry.files, torch_device), torch_device
    return load_refined(entry.files, torch_device, refine), torch_device


def register_sides(
    network: Module,
    moving: RegistrationInput,
    fixed: RegistrationInput,
    names: Sequence[str],
    device: Device,
) -> Pair:
    """Register one scan to another, in memory; `names` of the C classes, background first."""
    from napari_jrss.inference.predict import displacement_field, follow
    from napari_jrss.inference.refine import RefinedRegistration

    started = time.perf_counter()
    field = displacement_field(network, moving.image, fixed.image, device)
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
        refined=isinstance(network, RefinedRegistration),
        notes=[
            f"{side.name}: {side.transform.header.doubt}"
            for side in (moving, fixed)
            if side.transform.header is not None and side.transform.header.doubt
        ],
    )
    return Pair(moving, fixed, registered, report)


def propagate(project: Project, case_id: str, *, device: str = "auto") -> Prediction:
    """Let the labelled cases vote for a case's label: each of them is registered to it."""
    *_, draft = register_labelled(project, case_id, device=device)
    assert not isinstance(draft, RegistrationReport)
    return draft


def register_labelled(
    project: Project, case_id: str, *, refine: Watch | None = None, device: str = "auto"
) -> Iterator[RegistrationReport | Prediction]:
    """Register every other labelled case to a case.

    Yields the figures of each pair; last, the label that all of them vote for.
    """
    from napari_jrss.inference.predict import Votes

    network, torch_device = registration_network(project, device, refine)
    atlases = [case for case in project.snapshot().labelled if case != case_id]
    if not atlases:
        raise ProjectError(f"{project.path}: no other labelled case to register")
    names = project.table.names
    fixed = read_registration_input(project, case_id)
    votes = Votes(fixed.image, len(names))
    for atlas in atlases:
        pair = register_sides(
            network, read_registration_input(project, atlas), fixed, names, torch_device
        )
        votes.add(pair.registered)
        yield pair.report
    yield votes.prediction()


def read_registration_input(project: Project, name: str) -> RegistrationInput:
    """Read a case of the project by its id, or a scan by its path."""
    cases = {case.case_id: case for case in project.cases()}
    if name in cases:
        attributes = project.attributes(name)
        label = project.label(name) if cases[name].label_version else None
        image, transform = project.image(name), attributes.transform
        scan: Path | Volume = Path(attributes.source)
        if attributes.source == DICOM_SOURCE:
            # The path of a DICOM scan isn't kept: use the project's image, on the scan's grid.
            scan = Volume(transform.image_to_source(image), np.array(transform.source_affine))
        return RegistrationInput(name, image, label, transform, scan)
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
