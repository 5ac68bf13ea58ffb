"""The records of the ledger: cases, label versions, rounds, and what happened to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from napari_jrss.io.round_files import RoundFiles


class Split(StrEnum):
    """What a case is for; decided per subject group by :meth:`Project.split`."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    UNUSED = "unused"


class Status(StrEnum):
    """Where a case's label comes from; a training case with a label belongs to N."""

    UNLABELLED = "unlabelled"
    MANUAL = "manual"
    ACCEPTED = "accepted"
    CORRECTED = "corrected"
    REJECTED = "rejected"

    @property
    def has_label(self) -> bool:
        """Whether a person stands behind a label of the case."""
        return self in (Status.MANUAL, Status.ACCEPTED, Status.CORRECTED)


class RoundOutcome(StrEnum):
    """How a round ended, if it did."""

    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class RoundKind(StrEnum):
    """What a round is: a training that a person started, or a quick one after an accepted label."""

    TRAINING = "training"
    QUICK = "quick"


class Event(StrEnum):
    """What can happen in a project, as the history lists it."""

    CREATED = "created"
    IMPORTED = "imported"
    SPLIT = "split"
    STRUCTURE_CHANGED = "structure changed"
    RELINKED = "relinked"
    LABELLED = "labelled"
    ACCEPTED = "accepted"
    CORRECTED = "corrected"
    REJECTED = "rejected"
    SKIPPED = "skipped"
    RESTORED = "restored"
    ROUND_STARTED = "round started"
    ROUND_RESUMED = "round resumed"
    ROUND_ENDED = "round ended"
    PROMOTED = "promoted"
    PLAN_CHANGED = "plan changed"


@dataclass(frozen=True)
class Case:
    """One scan of the project."""

    case_id: str
    split: Split  # what it is for
    status: Status  # where its label comes from
    label_version: str | None  # the label in force, or None
    # A label on the disk that is hidden from training: the case counts as unlabelled in a few-shot
    # simulation. None for cases whose label is in force or that have none.
    reference_version: str | None
    group: str | None  # subject group, or None

    @property
    def labelled(self) -> bool:
        """Whether the case belongs to the labelled set N."""
        return self.split is Split.TRAIN and self.status.has_label


@dataclass(frozen=True)
class LabelVersion:
    """One label of one case; never changed, never deleted.

    Attributes
    ----------
    case_id, version
        The case, and the name of the version: ``v0001``, ``v0002``...
    status
        The status it gives to its case.
    created
        UTC time, ISO 8601.
    author
        The name that the person gave.
    draft
        What it was made from, see :func:`~napari_jrss.project.labels.check_draft`.
    voxels_changed
        Number of voxels that differ from the draft, if known.
    seconds
        Time spent on it, if known.
    sha256
        Of its voxels on the training grid in C order, as they were when it was made.
    scan_sha256
        Of its voxels on the scan's own grid, turned to LPS; None while they are only known on
        the training grid, as in a project of an older version whose sources are gone.
    """

    case_id: str
    version: str
    status: Status
    created: str
    author: str
    draft: str
    voxels_changed: int | None
    seconds: float | None
    sha256: str
    scan_sha256: str | None = None


@dataclass(frozen=True)
class Round:
    """Pre-training (number 0, or any round without a parent) or one joint round."""

    # `rounds/0000`, `rounds/0001`...: the engine writes into the folder.
    number: int
    folder: Path
    parent: int | None  # the round whose teacher it started from, or None
    outcome: RoundOutcome  # how it ended; RUNNING also when its program died
    # UTC times, ISO 8601.
    started: str
    finished: str | None
    config_sha256: str  # of the configuration's text, which is the folder's `config.json`
    # Label version of each labelled and validation case, as the round uses them.
    label_versions: Mapping[str, str]
    metrics: Mapping[str, object]  # what the engine measured
    kind: RoundKind = RoundKind.TRAINING

    @property
    def files(self) -> RoundFiles:
        """The files in its folder."""
        return RoundFiles(self.folder)


@dataclass(frozen=True)
class HistoryEntry:
    """One line of a project's history; fields that don't apply are None or empty."""

    at: str
    kind: Event
    author: str | None
    case_id: str | None
    version: str | None
    round: int | None
    detail: str


class CorrectionsInfo(BaseModel):
    """What a file of corrections says of itself.

    Attributes
    ----------
    case_id
        The case.
    draft, author
        What the corrections start from, and by whom they are.
    started, last_change
        UTC times, ISO 8601.
    seconds
        Time spent on the case.
    accepted
        Structures, by class index, that the person accepted one by one.
    shape, classes
        Of the label: (z, y, x), and the number of classes with the background.
    on_scan
        Whether it lies on the scan's own voxels, turned to LPS; older versions drew on the
        training grid.
    helped
        Actions of other programs in it, by their names, such as nnInteractive.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    case_id: str
    draft: str
    author: str
    started: str
    last_change: str
    seconds: float
    accepted: frozenset[int]
    shape: tuple[int, int, int]
    classes: int
    on_scan: bool = False
    helped: Mapping[str, int] = {}


@dataclass(frozen=True)
class FailedImport:
    """A scan that didn't become a case, and why."""

    at: str
    case_id: str
    reason: str


def now() -> str:
    """The time as the ledger writes it: UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def round_folder(number: int) -> str:
    """Name of a round's folder."""
    return f"{number:04d}"
