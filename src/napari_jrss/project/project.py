"""A project on disk: cases, label versions and rounds; open, create, split, promote, roll back."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from napari_jrss import __version__
from napari_jrss.config import PreprocessingConfig
from napari_jrss.data import store
from napari_jrss.data.batches import CachedArrays, CohortSnapshot, Image, Label
from napari_jrss.data.chain import TrainingGrid
from napari_jrss.data.grid import training_grid
from napari_jrss.data.ingest import IngestResult, ingest
from napari_jrss.data.labels import LabelClass, LabelTable
from napari_jrss.data.layouts import FoundCase
from napari_jrss.data.store import CaseAttributes
from napari_jrss.project.atomic import aside, sync_file, sync_folder, sync_tree, write_text
from napari_jrss.project.errors import ProjectError
from napari_jrss.project.ledger import (
    Case,
    Event,
    FailedImport,
    HistoryEntry,
    LabelVersion,
    Ledger,
    Outcome,
    Round,
    Split,
    Status,
    now,
    round_folder,
)
from napari_jrss.project.lock import WriterLock
from napari_jrss.project.split import Assignment, split_by_group

LEDGER = "project.sqlite"
LOCK = "project.lock"
CASES = "cases"
ROUNDS = "rounds"
LEFTOVERS = "leftovers"
JOURNALS = "journal"
IMPORT_AUTHOR = "import"
FIRST_VERSION = "v0001"

_CASE_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
_VERSION = re.compile(r"v[0-9]{4,}")
_DRAFT = re.compile(r"blank|imported|(?:round|case|version):\S+")


class Project:
    """One project folder. Make one with :meth:`create` or :meth:`open`; close it when done.

    A project open for writing holds its lock until :meth:`close`, so use it as a context
    manager. Its methods may be called from several threads of one program.

    Attributes
    ----------
    path
        The folder.
    read_only
        Whether changes are refused.
    """

    def __init__(self, path: Path, ledger: Ledger, lock: WriterLock | None) -> None:
        self.path = path
        self._ledger = ledger
        self._lock = lock
        self.read_only = ledger.read_only
        try:
            self.table = LabelTable.model_validate_json(ledger.setting("label_table") or "")
            self.preprocessing = PreprocessingConfig.model_validate_json(
                ledger.setting("preprocessing") or ""
            )
        except (ValidationError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ProjectError(f"{path / LEDGER}: unreadable settings ({reason})") from error

    # -- open and close

    @classmethod
    def create(
        cls, path: str | Path, table: LabelTable, preprocessing: PreprocessingConfig
    ) -> Self:
        """Make an empty project and open it for writing.

        Parameters
        ----------
        path
            The new folder, by custom ``<name>.jrss``.
        table
            Names and colours of the classes.
        preprocessing
            How scans reach the training grid.

        Raises
        ------
        ProjectError
            Something is there already, or the place can't be written.
        """
        path = Path(path).absolute()
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise ProjectError(f"{path}: exists already")
        temporary = aside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            (temporary / CASES).mkdir()
            (temporary / ROUNDS).mkdir()
            Ledger.create(
                temporary / LEDGER,
                table.model_dump_json(),
                preprocessing.model_dump_json(),
                __version__,
            )
            sync_tree(temporary)
            if path.exists():
                path.rmdir()
            temporary.rename(path)
            sync_folder(path.parent)
        except OSError as error:
            raise ProjectError(f"{path}: can't be made ({error.strerror or error})") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path, read_only: bool = False) -> Self:
        """Open a project.

        Parameters
        ----------
        path
            Its folder, wherever it has been moved.
        read_only
            Only look; possible while another program writes.

        Raises
        ------
        ProjectError
            Not a project, damaged, made by a newer version, or held by another program (the
            message says by whom and since when).
        """
        path = Path(path).absolute()
        if not path.exists():
            raise ProjectError(f"{path}: no such folder")
        if not (path / LEDGER).is_file():
            raise ProjectError(f"{path}: not a project (it has no {LEDGER})")
        lock = None if read_only else WriterLock(path / LOCK)
        try:
            ledger = Ledger(path / LEDGER, read_only)
            try:
                project = cls(path, ledger, lock)
            except BaseException:
                ledger.close()
                raise
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        if not read_only:
            project._sweep()
        return project

    def close(self) -> None:
        """Close the ledger and free the lock; safe to call again."""
        self._ledger.close()
        if self._lock is not None:
            self._lock.release()

    def _sweep(self) -> None:
        """Remove the half cases that a killed program was still writing aside."""
        folder = self._inside(CASES)
        for unfinished in folder.glob(".*.partial") if folder.is_dir() else ():
            # What can't be removed is in nobody's way, so it is no reason not to open.
            shutil.rmtree(unfinished, ignore_errors=True)

    def _inside(self, *parts: str) -> Path:
        """A path below the project, none of whose folders is a link that leads elsewhere."""
        path = self.path
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise ProjectError(f"{path}: a link, which a project doesn't follow")
        return path

    def check_writable(self) -> None:
        """Raise :class:`ProjectError` if the project is open read-only."""
        if self.read_only:
            raise ProjectError(f"{self.path}: is open read-only")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- cases

    def cases(self) -> list[Case]:
        """All cases, by id."""
        return self._ledger.cases()

    def case(self, case_id: str) -> Case:
        """One case.

        Raises
        ------
        ProjectError
            The project has no such case.
        """
        case = self._ledger.case(case_id)
        if case is None:
            raise ProjectError(f"{self.path}: has no case {case_id!r}")
        return case

    def case_path(self, case_id: str) -> Path:
        """The OME-Zarr folder of a case, inside the project whatever the id says.

        Raises
        ------
        ProjectError
            The id can't name a folder, or a link leads out of the project.
        """
        check_case_id(case_id)
        name = f"{case_id}{store.SUFFIX}"
        self._inside(CASES, name, "labels")
        return self._inside(CASES, name)

    def journal_path(self, case_id: str) -> Path:
        """Where the corrections of a case are journalled, see :mod:`.journal`.

        Raises
        ------
        ProjectError
            As :meth:`case_path`.
        """
        check_case_id(case_id)
        return self._inside(JOURNALS, f"{case_id}.journal")

    @property
    def grid(self) -> TrainingGrid:
        """The training grid that all cases share.

        Raises
        ------
        ProjectError
            No scans have been added yet.
        """
        text = self._ledger.setting("grid")
        if text is None:
            raise ProjectError(f"{self.path}: has no training grid yet; add scans first")
        try:
            return TrainingGrid.model_validate_json(text)
        except ValidationError as error:
            reason = " ".join(str(error).split())
            raise ProjectError(f"{self.path / LEDGER}: unreadable grid ({reason})") from error

    def attributes(self, case_id: str) -> CaseAttributes:
        """Where a case came from, and the chain back to its scan's own grid."""
        return store.read_attributes(self.case_path(self.case(case_id).case_id))

    def image(self, case_id: str) -> Image:
        """Preprocessed image (z, y, x) of a case on the training grid."""
        return store.read_image(self.case_path(self.case(case_id).case_id))

    def add_cases(
        self,
        found: Sequence[FoundCase],
        workers: int | None = None,
        groups: Mapping[str, str | None] | None = None,
    ) -> Iterator[IngestResult]:
        """Preprocess scans in worker processes and make each a case as it gets ready.

        The first scans added settle the training grid. A scan that fails is recorded with the
        reason, see :meth:`failed_imports`, and the others go on; scans may be added again.

        Parameters
        ----------
        found
            As :func:`~napari_jrss.data.layouts.discover` finds them.
        workers
            Processes; None: one per core.
        groups
            Subject group of each case, where known.

        Yields
        ------
        IngestResult
            One per scan, in the order in which they end.

        Raises
        ------
        ProjectError
            The project is read-only.
        ScanError
            No scan can be read, or the reference case is none of them.
        """
        self.check_writable()
        groups = groups or {}
        known = {case.case_id.lower() for case in self.cases()}
        fresh = []
        for scan in found:
            try:
                path = self.case_path(scan.case_id)
            except ProjectError as error:
                yield self._failed(IngestResult(scan.case_id, False, str(error)))
                continue
            if scan.case_id.lower() in known:
                yield IngestResult(scan.case_id, False, "the project has this case already")
                continue
            known.add(scan.case_id.lower())
            self._clear(path)
            fresh.append(scan)
        if not fresh:
            return
        if not self.cases():
            # Settled by the first import that brings a case.
            chosen = training_grid(fresh, self.preprocessing, self.table, workers)
            self._ledger.set_grid(chosen.model_dump_json())
        for result in ingest(
            fresh,
            self.preprocessing,
            self.table,
            self._inside(CASES),
            workers,
            grid=self.grid,
            version=FIRST_VERSION,
        ):
            if result.ok:
                self.register_case(result.case_id, groups.get(result.case_id))
                yield result
            else:
                yield self._failed(result)

    def register_case(self, case_id: str, group: str | None = None) -> Case:
        """Make a case of a scan whose OME-Zarr folder is in place.

        Parameters
        ----------
        case_id
            Names the folder ``cases/<case_id>.ome.zarr``. The first label in it becomes the
            label in force, with the status MANUAL.
        group
            Subject group, where known.

        Raises
        ------
        ProjectError
            The id is taken (upper and lower case don't count), or the folder isn't there.
        """
        self.check_writable()
        path = self.case_path(case_id)
        if case_id.lower() in {case.case_id.lower() for case in self.cases()}:
            raise ProjectError(f"{self.path}: has a case {case_id} already")
        if not path.is_dir():
            raise ProjectError(f"{path}: isn't there")
        sync_tree(path)
        sync_folder(path.parent)
        label = None
        for version in store.label_versions(path)[:1]:
            label = LabelVersion(
                case_id=case_id,
                version=version,
                status=Status.MANUAL,
                created=now(),
                author=IMPORT_AUTHOR,
                draft="imported",
                voxels_changed=None,
                seconds=None,
                sha256=fingerprint(store.read_label(path, version)),
            )
        self._ledger.add_case(case_id, group, label)
        return self.case(case_id)

    def _failed(self, result: IngestResult) -> IngestResult:
        self._ledger.fail_import(result.case_id, result.reason)
        return result

    def _clear(self, path: Path) -> None:
        """Make room where a killed import left a folder that never became a case.

        A folder with more than an imported label holds somebody's work, whatever became of
        the ledger: it is put aside, not removed.
        """
        if not path.exists():
            return
        if self._labels_on_disk(path) <= {FIRST_VERSION}:
            shutil.rmtree(path)
        else:
            leftovers = self._inside(LEFTOVERS)
            leftovers.mkdir(exist_ok=True)
            path.rename(leftovers / f"{now().replace(':', '')}-{path.name}")

    def failed_imports(self) -> list[FailedImport]:
        """Scans that couldn't become cases, and why."""
        return self._ledger.failed_imports()

    def split(
        self,
        labelled: int | None = None,
        validation: int = 0,
        test: int = 0,
        training: int | None = None,
        seed: int = 0,
        groups: Mapping[str, str | None] | None = None,
    ) -> Assignment:
        """Deal the cases to training, validation and test, whole subject groups together.

        For one seed the three sets are the same for every `labelled`, and the labelled set of
        a smaller N lies in that of a larger N. Training cases beyond N count as unlabelled;
        labels they have are kept, hidden from training.

        Parameters
        ----------
        labelled
            N; None for every training case that has a label.
        validation, test
            Numbers of cases (with labels).
        training
            K; the cases beyond it are put aside (UNUSED). None for all that are left.
        seed
            Of the shuffle.
        groups
            Subject group of every case; None for those that the project knows.

        Raises
        ------
        ProjectError
            Too few cases, a case without an entry in `groups`, or rounds that were trained
            on an earlier split (test cases may have trained then).
        """
        if self._ledger.rounds(self.path / ROUNDS):
            raise ProjectError(
                f"{self.path}: has rounds trained on its split; a new split needs a new project"
            )
        cases = {case.case_id: case for case in self.cases()}
        if groups is None:
            groups = {case_id: case.group for case_id, case in cases.items()}
        for case_id in cases.keys() - groups.keys():
            raise ProjectError(f"{self.path}: no subject group is given for case {case_id}")
        groups = {case_id: groups[case_id] for case_id in cases}
        label = {c.case_id: c.label_version or c.reference_version for c in cases.values()}
        assignment = split_by_group(
            groups,
            [case_id for case_id, version in label.items() if version is not None],
            labelled=labelled,
            validation=validation,
            test=test,
            training=training,
            seed=seed,
        )
        side = {
            case_id: split
            for split, ids in (
                (Split.TRAIN, assignment.train),
                (Split.VALIDATION, assignment.validation),
                (Split.TEST, assignment.test),
                (Split.UNUSED, assignment.unused),
            )
            for case_id in ids
        }
        hidden = set(assignment.train) - set(assignment.labelled)
        status = self._ledger.version_status()
        dealt = []
        for case_id, case in cases.items():
            version = label[case_id]
            case = replace(case, split=side[case_id])
            if version is not None and case_id not in hidden:
                case = replace(
                    case,
                    status=status[case_id, version],
                    label_version=version,
                    reference_version=None,
                )
            elif version is not None:
                case = replace(
                    case,
                    status=Status.UNLABELLED,
                    label_version=None,
                    reference_version=version,
                )
            dealt.append(case)
        counts = Counter(case.split for case in dealt)
        detail = ", ".join(f"{counts[split]} {split}" for split in Split)
        self._ledger.assign(
            dealt, f"{detail}; {len(assignment.labelled)} labelled; seed {seed}", groups
        )
        return assignment

    # -- structures

    def rename_structure(self, index: int, name: str, author: str | None = None) -> None:
        """Give a structure another name; its index and the ids of the files stay.

        Raises
        ------
        ProjectError
            There is no such structure, the name is empty or another's, or the project is
            read-only.
        """
        name = " ".join(name.split())
        if name in (c.name for c in self.table.classes if c.index != index):
            raise ProjectError(f"{self.path}: another structure is named {name!r}")
        self._change_structure(index, author, name=name)

    def recolour_structure(self, index: int, colour: str, author: str | None = None) -> None:
        """Give a structure another colour, #rrggbb.

        Raises
        ------
        ProjectError
            There is no such structure, that is no colour, or the project is read-only.
        """
        self._change_structure(index, author, colour=colour.lower())

    def _change_structure(self, index: int, author: str | None, **changes: str) -> None:
        if not 1 <= index < len(self.table.classes):
            raise ProjectError(f"{self.path}: has no structure {index}")
        classes = list(self.table.classes)
        before = classes[index]
        try:
            after = LabelClass.model_validate({**before.model_dump(), **changes})
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ProjectError(f"{self.path}: structure {before.name}: {reason}") from error
        if after == before:
            return
        classes[index] = after
        table = self.table.model_copy(update={"classes": tuple(classes)})
        detail = f"{index}: {before.name} {before.colour} -> {after.name} {after.colour}"
        self._ledger.set_label_table(table.model_dump_json(), author, detail)
        self.table = table

    # -- labels

    def label(self, case_id: str, version: str | None = None) -> Label:
        """A label (z, y, x) of a case on the training grid, as class indices.

        Parameters
        ----------
        case_id
            Whose.
        version
            Which; None for the one in force.

        Raises
        ------
        ProjectError
            There is none, or its voxels aren't what was once written.
        """
        case = self.case(case_id)
        version = version or case.label_version
        if version is None:
            raise ProjectError(f"{self.path}: case {case_id} has no label")
        entry = self._version(case_id, version)
        path = self.case_path(case_id)
        array = store.read_label(path, version)
        if fingerprint(array) != entry.sha256:
            raise ProjectError(f"{path}: label {version} isn't what was written; it is damaged")
        return array

    def label_versions(self, case_id: str) -> list[LabelVersion]:
        """All label versions of a case, oldest first."""
        return self._ledger.versions(self.case(case_id).case_id)

    def label_counts(self) -> dict[str, int]:
        """Number of label versions of each case that has any."""
        return dict(Counter(case_id for case_id, _ in self._ledger.version_status()))

    def add_label_version(
        self,
        case_id: str,
        array: NDArray[np.integer],
        author: str,
        *,
        draft: str = "blank",
        status: Status = Status.MANUAL,
        voxels_changed: int | None = None,
        seconds: float | None = None,
    ) -> str:
        """Keep a new label of a case and put it in force; earlier ones stay.

        Parameters
        ----------
        case_id
            Whose.
        array
            Class indices (z, y, x) on the training grid.
        author
            Who made it, by the name that the person gave.
        draft
            What it was made from: ``blank``, ``round:2`` (the teacher of that round),
            ``case:A`` (propagated from case A), ``version:v0001``.
        status
            MANUAL, ACCEPTED (as the teacher drew it) or CORRECTED.
        voxels_changed
            How many voxels differ from the draft; counted here when the draft is blank or a
            version.
        seconds
            Time spent on it.

        Returns
        -------
        str
            The version, such as ``v0002``.

        Raises
        ------
        ProjectError
            The array doesn't fit the case or the label table, or the project is read-only.
        """
        case = self.case(case_id)
        self.check_writable()
        if not author.strip():
            raise ProjectError("a label needs its author's name")
        if not Status(status).has_label:
            raise ProjectError(f"a label can't make its case {Status(status).value}")
        check_draft(draft)
        path = self.case_path(case.case_id)
        array = self.checked_label(case_id, array)
        if voxels_changed is None:
            if draft == "blank":
                voxels_changed = int(np.count_nonzero(array))
            elif draft.startswith("version:"):
                before = self.label(case_id, draft.removeprefix("version:"))
                voxels_changed = int(np.count_nonzero(array != before))
        kind = {
            Status.MANUAL: Event.LABELLED,
            Status.ACCEPTED: Event.ACCEPTED,
            Status.CORRECTED: Event.CORRECTED,
        }[Status(status)]
        label = LabelVersion(
            case_id=case_id,
            version=self._next_version(case_id, path),
            status=Status(status),
            created=now(),
            author=author,
            draft=draft,
            voxels_changed=voxels_changed,
            seconds=seconds,
            sha256=fingerprint(array),
        )
        return self._put_in_force(path, label, array, kind)

    def restore(self, case_id: str, version: str, author: str) -> str:
        """Put an earlier label back in force, as a new version; returns its name.

        Raises
        ------
        ProjectError
            There is no such version, it is damaged, or the project is read-only.
        """
        self.check_writable()
        if not author.strip():
            raise ProjectError("a label needs its author's name")
        array = self.label(case_id, version)
        path = self.case_path(case_id)
        label = replace(
            self._version(case_id, version),
            version=self._next_version(case_id, path),
            created=now(),
            author=author,
            draft=f"version:{version}",
            voxels_changed=0,
            seconds=None,
        )
        return self._put_in_force(path, label, array, Event.RESTORED)

    def _put_in_force(self, path: Path, label: LabelVersion, array: Label, kind: Event) -> str:
        """Write a label, flush it, and only then let the ledger know."""
        try:
            store.add_label(path, label.version, array, self.table)
            sync_tree(path / "labels" / label.version)
            sync_file(path / "labels" / "zarr.json")
            sync_folder(path / "labels")
        except OSError as error:
            raise ProjectError(f"{path}: label can't be written ({error.strerror})") from error
        self._ledger.add_version(label, kind, f"from {label.draft}")
        return label.version

    def reject(
        self, case_id: str, author: str, reason: str = "", round_number: int | None = None
    ) -> None:
        """Record that a person rejected a case's pseudo-label; a label in force stays."""
        self._decide(case_id, Event.REJECTED, author, round_number, reason)

    def skip(
        self, case_id: str, author: str, reason: str = "", round_number: int | None = None
    ) -> None:
        """Record that a person looked at a case and left it for later."""
        self._decide(case_id, Event.SKIPPED, author, round_number, reason)

    def _decide(
        self, case_id: str, kind: Event, author: str, round_number: int | None, reason: str
    ) -> None:
        if not author.strip():
            raise ProjectError("a decision needs its author's name")
        self._ledger.decide(self.case(case_id).case_id, kind, author, round_number, reason)

    def history(self, case_id: str | None = None) -> list[HistoryEntry]:
        """What happened, oldest first: to one case, or in the whole project."""
        return self._ledger.history(None if case_id is None else self.case(case_id).case_id)

    def _version(self, case_id: str, version: str) -> LabelVersion:
        for entry in self.label_versions(case_id):
            if entry.version == version:
                return entry
        raise ProjectError(f"{self.path}: case {case_id} has no label version {version!r}")

    def checked_label(self, case_id: str, array: NDArray[np.integer]) -> Label:
        """The array as the project keeps labels; :class:`ProjectError` if it can't be one."""
        array = np.asarray(array)
        if array.dtype.kind not in "iub":
            raise ProjectError(f"case {case_id}: a label holds integers, not {array.dtype}")
        if array.shape != self.grid.shape:
            raise ProjectError(
                f"case {case_id}: label of shape {array.shape}, training grid of {self.grid.shape}"
            )
        low, high, last = int(array.min()), int(array.max()), len(self.table.names) - 1
        if low < 0 or high > last:
            raise ProjectError(
                f"case {case_id}: the label has class {low if low < 0 else high}, "
                f"the project's are 0 to {last}"
            )
        return np.ascontiguousarray(array, self.table.dtype)

    def _next_version(self, case_id: str, path: Path) -> str:
        """A name that neither the ledger nor the disk knows.

        A label that a killed program had written but not registered keeps its name: it may be
        somebody's last work, and nothing here overwrites a label.
        """
        names = {entry.version for entry in self.label_versions(case_id)}
        names |= self._labels_on_disk(path)
        numbers = [int(name[1:]) for name in names if _VERSION.fullmatch(name)]
        return f"v{max(numbers, default=0) + 1:04d}"

    def _labels_on_disk(self, path: Path) -> set[str]:
        folder = path / "labels"
        return {p.name for p in folder.iterdir() if p.is_dir()} if folder.is_dir() else set()

    # -- rounds

    def rounds(self) -> list[Round]:
        """All rounds by number."""
        return self._ledger.rounds(self.path / ROUNDS)

    def round(self, number: int) -> Round:
        """One round.

        Raises
        ------
        ProjectError
            There is no such round.
        """
        for entry in self.rounds():
            if entry.number == number:
                return entry
        raise ProjectError(f"{self.path}: has no round {number}")

    def start_round(
        self, parent: int | None, config_json: str, label_versions: Mapping[str, str]
    ) -> Round:
        """Begin a round: its number, its folder, and the labels as it will use them.

        A round that was left running by a program that died counts as cancelled from now on.

        Parameters
        ----------
        parent
            The finished round whose teacher it starts from; None for pre-training.
        config_json
            The configuration's text, written to the folder's ``config.json``.
        label_versions
            Label version of each labelled and validation case: a snapshot's.
        """
        self.check_writable()
        if parent is not None and self.round(parent).outcome is not Outcome.FINISHED:
            raise ProjectError(f"{self.path}: round {parent} isn't finished, so it has no teacher")
        roles: dict[str, tuple[str, str | None]] = {}
        for case in self.cases():
            version = label_versions.get(case.case_id)
            if case.split is Split.TRAIN:
                roles[case.case_id] = ("labelled" if version else "unlabelled", version)
            elif case.split is Split.VALIDATION and version:
                roles[case.case_id] = ("validation", version)
        for case_id in label_versions.keys() - roles.keys():
            raise ProjectError(f"{self.path}: case {case_id!r} neither trains nor validates")
        number = max((entry.number for entry in self.rounds()), default=-1) + 1
        self._inside(ROUNDS).mkdir(exist_ok=True)
        folder = self._inside(ROUNDS, round_folder(number))
        # A killed start leaves at most the configuration, or what was written aside for it.
        if folder.exists() and any(
            f.name != "config.json" and not f.name.startswith(".") for f in folder.iterdir()
        ):
            raise ProjectError(f"{folder}: in the way, though the ledger knows no round {number}")
        try:
            folder.mkdir(exist_ok=True)
            write_text(folder / "config.json", config_json)
            sync_folder(folder.parent)
        except OSError as error:
            raise ProjectError(f"{folder}: can't be written ({error.strerror})") from error
        self._ledger.add_round(number, parent, config_json, roles)
        return self.round(number)

    def resume_round(self, number: int) -> Round:
        """Go on with a round that was cancelled, failed, or left running by a dead program."""
        self._unfinished(number)
        self._ledger.resume_round(number)
        return self.round(number)

    def finish_round(
        self,
        number: int,
        outcome: Outcome | str,
        metrics: Mapping[str, object] | None = None,
        *,
        promote: bool = False,
    ) -> Round:
        """Record how a round ended: FINISHED (for good), CANCELLED or FAILED.

        Parameters
        ----------
        number, outcome
            Which, and how.
        metrics
            What the engine measured, as JSON can hold it.
        promote
            Make its teacher the current one in the same transaction.
        """
        self._unfinished(number)
        outcome = Outcome(outcome)
        if outcome is Outcome.RUNNING:
            raise ProjectError(f"{self.path}: a round doesn't end by running")
        if promote and outcome is not Outcome.FINISHED:
            raise ProjectError(f"{self.path}: a round that was {outcome} has no teacher")
        self._ledger.end_round(number, outcome, json.dumps(dict(metrics or {})), promote)
        return self.round(number)

    def unfinished_round(self) -> Round | None:
        """The latest round, if it can still be resumed."""
        rounds = self.rounds()
        return rounds[-1] if rounds and rounds[-1].outcome is not Outcome.FINISHED else None

    def promote(self, number: int, author: str | None = None, reason: str = "") -> None:
        """Make a finished round's teacher the current one; an earlier round rolls back."""
        if self.round(number).outcome is not Outcome.FINISHED:
            raise ProjectError(f"{self.path}: round {number} isn't finished, so it has no teacher")
        self._ledger.promote(number, author, reason)

    @property
    def teacher(self) -> Round | None:
        """The round whose teacher is the current one."""
        number = self._ledger.teacher()
        return None if number is None else self.round(number)

    def _unfinished(self, number: int) -> None:
        if self.round(number).outcome is Outcome.FINISHED:
            raise ProjectError(f"{self.path}: round {number} is finished")

    # -- for the engine

    def snapshot(self, round_number: int | None = None) -> CohortSnapshot:
        """The cases and labels as they are now, or as a round found them at its start.

        Raises
        ------
        ProjectError
            There are no cases.
        """
        if round_number is None:
            roles: dict[str, tuple[str, str | None]] = {}
            for case in self.cases():
                if case.labelled:
                    roles[case.case_id] = ("labelled", case.label_version)
                elif case.split is Split.TRAIN:
                    roles[case.case_id] = ("unlabelled", None)
                elif case.split is Split.VALIDATION and case.label_version:
                    roles[case.case_id] = ("validation", case.label_version)
        else:
            roles = self._ledger.roles(self.round(round_number).number)
        if not roles:
            raise ProjectError(f"{self.path}: has no cases to train on")
        versions = {case_id: version for case_id, (_, version) in roles.items() if version}
        paths = {case_id: self.case_path(case_id) for case_id in roles}
        reader = _SnapshotReader(paths, versions)
        grid = self.grid
        return CohortSnapshot(
            class_names=self.table.names,
            spacing_mm=grid.spacing_mm,
            shape=grid.shape,
            labelled=_with_role(roles, "labelled"),
            unlabelled=_with_role(roles, "unlabelled"),
            validation=_with_role(roles, "validation"),
            label_versions=versions,
            arrays=CachedArrays(reader.image, reader.label),
        )


@dataclass(frozen=True)
class _SnapshotReader:
    """Reads a snapshot's volumes; a label that isn't in the snapshot can't be read."""

    paths: Mapping[str, Path]
    versions: Mapping[str, str]

    def image(self, case_id: str) -> Image:
        return store.read_image(self.paths[case_id])

    def label(self, case_id: str) -> Label:
        if case_id not in self.versions:
            raise KeyError(f"case {case_id} has no label in this snapshot")
        return store.read_label(self.paths[case_id], self.versions[case_id])


def check_case_id(case_id: str) -> None:
    """Raise :class:`ProjectError` unless a case id can name a folder on every system."""
    if not _CASE_ID.fullmatch(case_id) or _RESERVED.fullmatch(case_id):
        raise ProjectError(
            f"{case_id[:120]!r} can't be a case id: letters, digits, dot, dash and underscore, "
            "at most 100, a letter or digit first, no dot last"
        )


def check_draft(draft: str) -> None:
    """Raise :class:`ProjectError` unless a draft says what a label was drawn from.

    That is ``blank``, ``imported``, ``round:2`` (the teacher of that round), ``case:A``
    (propagated from case A) or ``version:v0001``.
    """
    if not _DRAFT.fullmatch(draft):
        raise ProjectError(f"{draft!r} doesn't say what a label was drawn from")


def _with_role(roles: Mapping[str, tuple[str, str | None]], role: str) -> tuple[str, ...]:
    return tuple(sorted(case_id for case_id, (own, _) in roles.items() if own == role))


def fingerprint(array: NDArray[np.generic]) -> str:
    """SHA-256 of an array's voxels in C order."""
    return sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
