"""A case on the table: its scan, what the teacher says of it, and the label under correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from napari_jrss.app.review.autosave import PERIOD_S, Autosave
from napari_jrss.app.review.editor import LabelEditor
from napari_jrss.app.review.regions import Region
from napari_jrss.app.work_queue import WorkQueue
from napari_jrss.io.predictions import Prediction
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.transform import TrainingGrid
from napari_jrss.project.corrections import Corrections, recoverable
from napari_jrss.project.project import Project
from napari_jrss.project.records import Case, LabelVersion, Round, Split, Status
from napari_jrss.snapshot import Image, Label
from napari_jrss.training.screening import Screened, Screening

BLANK = "blank"


@dataclass(frozen=True)
class Source:
    """A label to begin with, or to take a structure from.

    Attributes
    ----------
    draft
        As :meth:`Project.add_label_version` has it.
    title
        In words.
    """

    draft: str
    title: str


@dataclass(frozen=True)
class Structure:
    """One row of the table of structures.

    Attributes
    ----------
    index, name, colour
        As in the label table.
    volume_ml
        In the label under correction.
    mean_confidence
        Of the teacher, over the voxels that it gives to this structure; None without any.
    passes
        Whether the structure would enter training at the present tau; None without a
        prediction.
    accepted
        Whether the person accepted it, which protects it from further changes.
    """

    index: int
    name: str
    colour: str
    volume_ml: float
    mean_confidence: float | None
    passes: bool | None
    accepted: bool


@dataclass(frozen=True, eq=False)
class Kept:
    """What stays in memory of a case that was on the table."""

    image: Image
    teacher: Round | None
    prediction: Prediction | None
    screening: Screening | None


@dataclass(eq=False)
class OpenCase:
    """One case under review; volumes are (z, y, x) on the training grid.

    Attributes
    ----------
    case
        Its row in the ledger.
    grid, table
        The project's.
    image
        Preprocessed.
    voxel_ml
        Millilitres of a voxel, as the scan itself measures them.
    versions
        Labels that may be looked at, oldest first; one that is hidden from training isn't.
    editor, autosave
        The label under correction, and what saves it.
    recovered
        When corrections that were found on the disk were last changed, or None.
    teacher
        The round that `prediction` is from.
    prediction
        The teacher's, or None while there is none.
    screening, screened
        The prediction held against tau; None until it is ready.
    drafts
        Labels that were propagated or sent here, by draft.
    regions
        Uncertain places, once somebody asked.
    """

    case: Case
    grid: TrainingGrid
    table: LabelTable
    image: Image
    voxel_ml: float
    versions: tuple[LabelVersion, ...]
    editor: LabelEditor
    autosave: Autosave
    recovered: str | None = None
    teacher: Round | None = None
    prediction: Prediction | None = None
    screening: Screening | None = None
    screened: Screened | None = None
    drafts: dict[str, Label] = field(default_factory=dict)
    regions: list[Region] | None = None

    @property
    def case_id(self) -> str:
        """Its id."""
        return self.case.case_id

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x)."""
        return self.grid.spacing_mm

    @property
    def kept(self) -> Kept:
        """What is worth keeping in memory when the case is left."""
        return Kept(self.image, self.teacher, self.prediction, self.screening)

    @property
    def purpose(self) -> str:
        """What a label of this case does, where that isn't training."""
        return {
            Split.TRAIN: "",
            Split.VALIDATION: "A validation case: its label measures the teacher, it never trains.",
            Split.TEST: "A test case: its label measures the result, it never trains.",
            Split.UNUSED: "Put aside by the split: its label doesn't train.",
        }[self.case.split]

    @property
    def sources(self) -> list[Source]:
        """Labels to begin with, the likeliest first."""
        found = []
        if self.prediction is not None and self.teacher is not None:
            found.append(_source(f"round:{self.teacher.number}"))
        found += [
            Source(
                f"version:{version.version}",
                f"{version.version}: {version.status}, {version.author}, {version.created[:16]}",
            )
            for version in reversed(self.versions)
        ]
        found += [_source(draft) for draft in (*self.drafts, BLANK)]
        return found

    def structures(self) -> list[Structure]:
        """The table of structures as it is now."""
        confidence = None if self.screening is None else self.screening.mean_confidence
        passed = None if self.screened is None else self.screened.classes_passed
        return [
            Structure(
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


def read_case(
    project: Project,
    case_id: str,
    queue: WorkQueue,
    author: str,
    known: Kept | None = None,
    autosave_s: float = PERIOD_S,
) -> OpenCase:
    """Put a case on the table, with the corrections that were saved, if any.

    Parameters
    ----------
    project
        The case's.
    case_id
        Which.
    queue
        Where corrections are saved.
    author
        The person, if known yet.
    known
        What is left in memory of it, which needn't be read again.
    autosave_s
        Seconds between two saves of the corrections.

    Raises
    ------
    ProjectError
        The case or its label in force can't be read.
    """
    case = project.case(case_id)
    teacher = project.teacher
    image = project.image(case_id) if known is None else known.image
    prediction, screening = None, None
    if known is not None and known.teacher == teacher:
        prediction, screening = known.prediction, known.screening
    elif teacher is not None:
        prediction = teacher.files.prediction(case_id)
    classes = len(project.table.names)
    corrections, last = None, None
    if not project.read_only and (found := recoverable(project, case_id)) is not None:
        corrections, last = Corrections.resume(project, found), found.info.last_change
        editor = LabelEditor(found.label, found.info.draft, classes, found.base)
        for index in found.info.accepted:
            editor.lock(index)
    else:
        editor = LabelEditor(*_usual_draft(project, case, teacher, prediction), classes)
    autosave = Autosave(project, case_id, editor, queue, author, corrections, autosave_s)
    if not project.read_only:
        editor.changed.connect(autosave.note)
    return OpenCase(
        case,
        project.grid,
        project.table,
        image,
        project.voxel_ml(case_id),
        tuple(visible_versions(project, case)),
        editor,
        autosave,
        last,
        teacher,
        prediction,
        screening,
    )


def visible_versions(project: Project, case: Case) -> Sequence[LabelVersion]:
    """Label versions of a case, but for one that a few-shot simulation hides."""
    versions = project.label_versions(case.case_id)
    hidden = case.reference_version if case.label_version is None else None
    return [version for version in versions if version.version != hidden]


def _usual_draft(
    project: Project, case: Case, teacher: Round | None, prediction: Prediction | None
) -> tuple[Label, str]:
    """What a person begins with: a label in force, else the pseudo-label, else nothing."""
    if case.label_version is not None:
        return project.label(case.case_id), f"version:{case.label_version}"
    if prediction is not None and teacher is not None and case.status is not Status.REJECTED:
        return prediction.label, f"round:{teacher.number}"
    return np.zeros(project.grid.shape, project.table.dtype), BLANK


def draft_in_words(draft: str) -> str:
    """What a label was drawn from, such as "pseudo-label of round 3"."""
    kind, _, what = draft.partition(":")
    if kind == "round":
        return f"pseudo-label of round {what}"
    if kind == "version":
        return what
    if kind == "case":
        cases = what.split(",")
        several = len(cases) > 3
        return "propagated from " + (
            f"{len(cases)} labelled cases" if several else ", ".join(cases)
        )
    return draft


def _source(draft: str) -> Source:
    words = draft_in_words(draft)
    return Source(draft, words[0].upper() + words[1:])
