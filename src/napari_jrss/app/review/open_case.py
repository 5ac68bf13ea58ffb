"""The case under review: its scan, the teacher's prediction, and the label under correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_jrss.app.review.autosave import PERIOD_S, Autosave
from napari_jrss.app.review.editor import LabelEditor
from napari_jrss.app.review.regions import Region
from napari_jrss.app.work_queue import WorkQueue
from napari_jrss.app.workspace import Workspace
from napari_jrss.errors import ProjectError
from napari_jrss.geometry import Triple, linear_and_shift, spacing_mm, voxel_ml
from napari_jrss.io.predictions import Prediction
from napari_jrss.labels import IGNORED, LabelTable
from napari_jrss.preprocess.resample import nearest
from napari_jrss.preprocess.transform import GridTransform, TrainingGrid
from napari_jrss.project.corrections import Corrections, recoverable
from napari_jrss.project.drafts import kept_draft, kept_drafts
from napari_jrss.project.project import Project
from napari_jrss.project.records import Case, LabelVersion, Round, Split, Status
from napari_jrss.snapshot import Label
from napari_jrss.times import local_time
from napari_jrss.training.screening import Screened, Screening

BLANK = "blank"
_LIKE_AIR_HU = -200  # intensities as low as this: a CT in Hounsfield units
_CT_WINDOWS: dict[str, tuple[float, float]] = {  # level and width in Hounsfield units
    "soft tissue": (40, 400),
    "liver": (60, 160),
    "brain": (40, 80),
    "lung": (-600, 1500),
    "bone": (400, 1800),
}
_UPRIGHT = 1e-5  # voxels per voxel by which axes may lean and still count as the same


@dataclass(frozen=True)
class DraftChoice:
    """A label to start from, or to take a structure from."""

    # Its key, as in `Project.add_label_version`: `round:N`, `version:V`, `case:A,B` or `blank`.
    draft: str
    title: str  # what the person reads


@dataclass(frozen=True)
class StructureRow:
    """One row of the table of structures."""

    # As in the label table.
    index: int
    name: str
    colour: str
    volume_ml: float  # in the label under correction
    # Mean confidence of the teacher, 0 to 1, over the voxels that it predicts as this structure;
    # None without any.
    mean_confidence: float | None
    # Whether the structure would enter training at the present tau; None without a prediction.
    passes: bool | None
    accepted: bool  # whether the person accepted the structure, which protects it from changes


@dataclass(frozen=True, eq=False)
class CachedCase:
    """What is in memory of a case that was, or may be next, under review."""

    image: NDArray[Any]
    teacher: Round | None
    prediction: Prediction | None = None
    screening: Screening | None = None
    drafts: dict[str, Label] = field(default_factory=dict)
    carried: Label | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of what is at the scan's own voxels."""
        labels = (self.carried, *self.drafts.values())
        return self.image.nbytes + sum(label.nbytes for label in labels if label is not None)


@dataclass(eq=False)
class OpenCase:
    """One case under review.

    The scan and its labels are (z, y, x) on the scan's own voxels, turned to LPS. What the
    teacher says of it lies on the training grid.

    Attributes
    ----------
    case
        Its entry in the project.
    grid, table
        Training grid and label table of the project.
    transform
        The scan's way to the training grid.
    image
        The scan with its own intensities.
    limits, extremes
        Its intensities as they are shown, from black to white, and its least and largest.
    versions
        Label versions that the person may see, oldest first; hidden labels are left out.
    editor, autosave
        The label under correction, and what keeps its corrections on the disk.
    recovered
        When the corrections that were restored were last changed (UTC, ISO 8601), or None.
    teacher
        The round that made `prediction`.
    prediction
        The teacher's prediction, or None while there is none.
    screening, screened
        The prediction screened at any tau, and at the present tau; None until it is ready.
    drafts
        Labels that were propagated or sent here from Registration, by draft key.
    kept
        Keys of other programs' drafts, which the project keeps.
    carried
        The teacher's label on the scan's own voxels; None until it is asked for.
    regions
        Uncertain regions, worst first; None until they are asked for.
    """

    case: Case
    grid: TrainingGrid
    table: LabelTable
    transform: GridTransform
    image: NDArray[Any]
    limits: tuple[float, float]
    extremes: tuple[float, float]
    versions: tuple[LabelVersion, ...]
    editor: LabelEditor
    autosave: Autosave
    recovered: str | None = None
    teacher: Round | None = None
    prediction: Prediction | None = None
    screening: Screening | None = None
    screened: Screened | None = None
    drafts: dict[str, Label] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    carried: Label | None = None
    regions: list[Region] | None = None

    @property
    def case_id(self) -> str:
        """Id of the case."""
        return self.case.case_id

    @property
    def spacing_mm(self) -> Triple:
        """Size (z, y, x) of the scan's voxels."""
        return spacing_mm(self.transform.scan_affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of one of the scan's voxels in millilitres."""
        return voxel_ml(self.transform.scan_affine)

    @cached_property
    def grid_placement(self) -> tuple[Triple, Triple] | None:
        """Spacing and place (z, y, x) of the training grid in mm from the scan's first voxel.

        None where its axes aren't those of the scan, as after an affine pre-alignment.
        """
        linear, shift = linear_and_shift(self.transform.grid_to_scan)
        steps = linear.diagonal()
        if steps.min() <= 0 or not np.allclose(linear, np.diag(steps), rtol=0, atol=_UPRIGHT):
            return None
        (z, y, x), (at_z, at_y, at_x) = (np.array([steps, shift]) * self.spacing_mm).tolist()
        return (z, y, x), (at_z, at_y, at_x)

    @cached_property
    def _nearest(self) -> NDArray[np.int32]:
        """The nearest voxel of the flattened training grid; one beyond the last outside of it."""
        numbers = np.arange(np.prod(self.grid.shape), dtype=np.int32).reshape(self.grid.shape)
        transform = self.transform
        return nearest(numbers, transform.scan_to_grid, transform.scan_shape, numbers.size)

    def shown(self, values: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Values (z, y, x) of the training grid as a layer can show them.

        They stay as they are where :attr:`grid_placement` says where they lie; else each of the
        scan's voxels gets the value of the nearest, and 0 beyond the grid.

        Parameters
        ----------
        values
            On the training grid.
        out
            Where to write them if they don't stay as they are; None: a new array.
        """
        if self.grid_placement is not None:
            return values
        return np.append(values.ravel(), values.dtype.type(0)).take(
            self._nearest, out=out, mode="clip"
        )

    @property
    def windows(self) -> dict[str, tuple[float, float]]:
        """Intensities from black to white, by name; those in Hounsfield units for a CT only."""
        known = {"Automatic": self.limits, "Whole range": self.extremes}
        if self.extremes[0] > _LIKE_AIR_HU:
            return known
        return known | {
            f"CT {name}": (level - width / 2, level + width / 2)
            for name, (level, width) in _CT_WINDOWS.items()
        }

    @property
    def cached(self) -> CachedCase:
        """What stays in memory when the case is left."""
        known = (self.image, self.teacher, self.prediction, self.screening, self.drafts)
        return CachedCase(*known, self.carried)

    def teacher_label(self) -> Label:
        """The teacher's label on the scan's own voxels; carried there the first time."""
        assert self.prediction is not None
        if self.carried is None:
            self.carried = self.transform.prediction_to_scan(self.prediction)
        return self.carried

    @property
    def awaited(self) -> bool:
        """Whether training waits for a label of this case."""
        return self.case.split is Split.TRAIN and not self.case.status.has_label

    @property
    def purpose(self) -> str:
        """What a label of this case is for, if not for training; else empty."""
        return {
            Split.TRAIN: "",
            Split.VALIDATION: "A validation case: its label selects the teacher and never trains.",
            Split.TEST: "A test case: its label measures the result and never trains.",
            Split.UNUSED: "The split left this case unused: its label doesn't train.",
        }[self.case.split]

    @property
    def draft_choices(self) -> list[DraftChoice]:
        """Labels to start from, the likeliest first."""
        found = []
        if self.prediction is not None and self.teacher is not None:
            found.append(_draft_choice(f"round:{self.teacher.number}"))
        found += [
            DraftChoice(
                f"version:{version.version}",
                f"{version_in_words(version.version)}: {version.status}, {version.author}, "
                f"{local_time(version.created)}",
            )
            for version in reversed(self.versions)
        ]
        found += [_draft_choice(draft) for draft in (*self.drafts, *self.kept, BLANK)]
        return found

    def check_editable(self, index: int) -> None:
        """:class:`ProjectError` if there is no such structure, or it was accepted."""
        names = self.table.names
        if not 0 < index < len(names):
            raise ProjectError(f"there is no structure {index}")
        if index in self.editor.locked:
            raise ProjectError(f"{names[index]} is accepted; withdraw that before changing it")

    def missing(self) -> list[str]:
        """Names of structures without a voxel in the label, though they are expected.

        They are in the draft that the label began from, or the teacher finds them. Where the label
        began empty, every structure is expected.
        """
        drawn = self.editor.origin
        expected = np.zeros(len(self.table.names), bool)
        expected[[i for i in np.unique(drawn.label).tolist() if i < expected.size]] = True
        if drawn.draft == BLANK:
            expected[:] = True
        elif self.screening is not None:
            expected |= ~np.isnan(self.screening.mean_confidence)
        return [
            each.name
            for each in self.table.classes[1:]
            if expected[each.index] and not self.editor.counts[each.index]
        ]

    def middle_of(self, index: int, axis: int) -> tuple[int, int, int] | None:
        """Voxel (z, y, x) amid one structure, in its largest slice across an axis.

        None if the label doesn't hold it.
        """
        if not self.editor.counts[index]:
            return None
        slices = np.moveaxis(self.editor.label, axis, 0)
        areas = [np.count_nonzero(each == index) for each in slices]
        largest = int(np.argmax(areas))
        rows, columns = (int(np.median(each)) for each in np.nonzero(slices[largest] == index))
        at = [rows, columns]
        at.insert(axis, largest)
        z, y, x = at
        return z, y, x

    def structures_in(self, axis: int, number: int) -> set[int]:
        """Structures that the label has in one slice across an axis."""
        found = np.unique(np.moveaxis(self.editor.label, axis, 0)[number])
        return set(found.tolist()) - {0, IGNORED}

    def structures(self) -> list[StructureRow]:
        """The rows of the table of structures."""
        confidence = None if self.screening is None else self.screening.mean_confidence
        passed = None if self.screened is None else self.screened.classes_passed
        return [
            StructureRow(
                each.index,
                each.name,
                each.colour,
                float(self.editor.counts[each.index]) * self.voxel_ml,
                None
                if confidence is None or np.isnan(confidence[each.index])
                else float(confidence[each.index]),
                None if passed is None else bool(passed[each.index]),
                each.index in self.editor.locked,
            )
            for each in self.table.classes[1:]
        ]


class CurrentCase:
    """The case under review, if there is one, and the queue that does its work."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace  # the open project, the person's settings, and the jobs
        # Runs the work of the review in the order it was asked for.
        self.queue = WorkQueue("review")
        self.case: OpenCase | None = None  # the case, or None

    @property
    def open_case(self) -> OpenCase:
        """The case under review; :class:`ProjectError` if there is none."""
        if self.case is None:
            raise ProjectError("no case is open for review")
        return self.case

    def label_from(self, case: OpenCase, draft: str) -> Label:
        """Class indices (z, y, x) of one of a case's drafts, by its key."""
        if draft == BLANK:
            return np.zeros(case.transform.scan_shape, case.table.dtype)
        if draft in case.drafts:
            return case.drafts[draft]
        if draft in case.kept:
            return kept_draft(self.workspace.open_project, case.case_id, draft)
        if draft.startswith("version:"):
            version = draft.removeprefix("version:")
            return self.workspace.open_project.scan_label(case.case_id, version)
        if (
            case.prediction is None
            or case.teacher is None
            or draft != f"round:{case.teacher.number}"
        ):
            raise ProjectError(f"case {case.case_id} has no label from {draft!r}")
        return case.teacher_label()


def read_case(
    project: Project,
    case_id: str,
    queue: WorkQueue,
    author: str,
    known: CachedCase | None = None,
    autosave_s: float = PERIOD_S,
    ahead: Mapping[str, Label] = MappingProxyType({}),
) -> OpenCase:
    """Read a case for review, with the corrections that were kept for it, if any.

    `author` is "" if the name isn't known yet; what is still in memory (`known`) isn't read again.
    `ahead` has drafts that were made before, by key and on the scan's voxels, the best last.
    A :class:`ProjectError` if the case or its label in force can't be read.
    """
    case = project.case(case_id)
    transform = project.attributes(case_id).transform
    classes = len(project.table.names)
    found = None if project.read_only else recoverable(project, case_id)
    known = read_volumes(project, case_id, known, draft=found is None and not ahead)
    known.drafts.update(ahead)
    corrections, last = None, None
    if found is not None:
        corrections, last = Corrections.resume(project, found), found.info.last_change
        editor = LabelEditor(found.label, found.info.draft, classes, found.base)
        for index in found.info.accepted:
            editor.lock(index)
    else:
        draft = _usual_draft(project, case, known, ahead)
        editor = LabelEditor(*draft, classes)
    autosave = Autosave(project, case_id, editor, queue, author, corrections, autosave_s)
    if not project.read_only:
        editor.changed.connect(autosave.note)
    return OpenCase(
        case,
        project.grid,
        project.table,
        transform,
        known.image,
        *intensity_range(known.image),
        tuple(visible_versions(project, case)),
        editor,
        autosave,
        last,
        known.teacher,
        known.prediction,
        known.screening,
        drafts=known.drafts,
        kept=kept_drafts(project, case_id),
        carried=known.carried,
    )


def read_volumes(
    project: Project, case_id: str, known: CachedCase | None = None, *, draft: bool = True
) -> CachedCase:
    """Read what a review of a case begins from; what is still in memory (`known`) isn't read again.

    With `draft` the teacher's label is carried to the scan's own voxels if the case has none in
    force. A :class:`ProjectError` or ScanError if the case can't be read.
    """
    case, teacher = project.case(case_id), project.teacher
    if known is None:
        known = CachedCase(project.scan_image(case_id), None)
    if known.teacher != teacher:
        prediction = None if teacher is None else teacher.files.prediction(case_id)
        known = CachedCase(known.image, teacher, prediction, drafts=known.drafts)
    usual = case.label_version is None and case.status is not Status.REJECTED
    if draft and usual and known.prediction is not None and known.carried is None:
        transform = project.attributes(case_id).transform
        known = replace(known, carried=transform.prediction_to_scan(known.prediction))
    return known


def visible_versions(project: Project, case: Case) -> Sequence[LabelVersion]:
    """Label versions of a case, without the one that a few-shot simulation hides."""
    versions = project.label_versions(case.case_id)
    hidden = case.reference_version if case.label_version is None else None
    return [version for version in versions if version.version != hidden]


def _usual_draft(
    project: Project,
    case: Case,
    known: CachedCase,
    ahead: Mapping[str, Label],
) -> tuple[Label, str]:
    """The draft to start from.

    The label in force, else what was made ahead, else the pseudo-label, else the latest of another
    program, else a blank one. Where the teacher's draft was rejected, that of another program.
    """
    if case.label_version is not None:
        return project.scan_label(case.case_id), f"version:{case.label_version}"
    if ahead and case.status is not Status.REJECTED:
        draft, label = list(ahead.items())[-1]
        return label, draft
    if (
        known.carried is not None
        and known.teacher is not None
        and case.status is not Status.REJECTED
    ):
        return known.carried, f"round:{known.teacher.number}"
    for draft in kept_drafts(project, case.case_id)[:1]:
        return kept_draft(project, case.case_id, draft), draft
    return np.zeros(known.image.shape, project.table.dtype), BLANK


def intensity_range(image: NDArray[Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Intensities from black to white, and the least and the largest."""
    low, high = (float(v) for v in np.percentile(image[::4, ::4, ::4], (0.5, 99.8)))
    return (low, max(high, low + 1e-3)), (float(image.min()), float(image.max()))


def draft_in_words(draft: str) -> str:
    """What a label was drawn from, for a person, such as "teacher's draft of round 3"."""
    kind, _, what = draft.partition(":")
    if kind == "round":
        return f"teacher's draft of round {what}"
    if kind == "version":
        return version_in_words(what)
    if kind == "tool":
        return f"draft of {what.replace('_', ' ')}"
    if kind == "file":
        return f"imported from {what}"
    if kind == "case":
        names, _, teacher = what.partition("+round:")
        cases = names.split(",")
        several = len(cases) > 3
        voted = "propagated from " + (
            f"{len(cases)} labelled cases" if several else ", ".join(cases)
        )
        return f"{voted}, averaged with the teacher's of round {teacher}" if teacher else voted
    return "empty label" if draft == BLANK else draft


def version_in_words(version: str) -> str:
    """Such as "label 3" for ``v0003``."""
    number = version.removeprefix("v")
    return f"label {int(number)}" if number.isdigit() else version


def _draft_choice(draft: str) -> DraftChoice:
    words = draft_in_words(draft)
    return DraftChoice(draft, words[0].upper() + words[1:])
